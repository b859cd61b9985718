"""How much memory a training run takes at its peak, estimated before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ...foundation.memory import usual_bytes
from ...methods.base import Compressor
from ...methods.estimates import trained_skeleton
from ...models.blocks import find_blocks
from ...models.footprint import loading_bytes
from ...models.matrices import model_size
from ...models.pass_memory import PassPeak, pass_peak
from ...models.streamed import NotStreamable
from .settings import Placement, TrainSettings

STATE_BYTES: dict[str, float] = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused"), 8),
    **dict.fromkeys(("paged_adamw_32bit", "stable_adamw", "schedule_free_adamw", "schedule_free_radam"), 8),
    **dict.fromkeys(("adagrad", "rmsprop", "rmsprop_bnb", "rmsprop_bnb_32bit"), 4),
    **dict.fromkeys(("lion_32bit", "paged_lion_32bit", "schedule_free_sgd"), 4),
    "adamw_anyprecision": 6,
    "ademamix": 12,
    "paged_ademamix_32bit": 12,
    "sgd": 0,
    # One byte a value, and a float32 scale for each block of 256 (torchao, bitsandbytes) or 128 values (4 bits).
    **dict.fromkeys(("adamw_torch_8bit", "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"), 2 + 2 / 64),
    **dict.fromkeys(("ademamix_8bit", "paged_ademamix_8bit"), 3 + 3 / 64),
    **dict.fromkeys(("lion_8bit", "paged_lion_8bit", "rmsprop_bnb_8bit"), 1 + 1 / 64),
    "adamw_torch_4bit": 1 + 2 / 32,
}
"""Bytes that an optimizer keeps for a trained parameter, by transformers' name; of the others AdamW's are assumed.

Adafactor keeps rows and columns, which are counted by shape.
"""
_ADAMW_BYTES = 8
_GPU_BASE_BYTES = 2 << 30
"""Host memory of a process that uses CUDA: `STARTED_BYTES` and the libraries' kernels. Not measured."""
_IN_PLACE = ("adamw_torch_fused", "adamw_torch_npu_fused", "sgd")
"""Optimizers that update without copies; on the CPU torch's fused AdamW too."""
_FOREACH = ("adamw_torch", "adagrad", "rmsprop")
"""Optimizers of torch that on a GPU work on all parameters at once, with one copy of them all."""


@dataclass(frozen=True)
class TrainingPeak:
    """Bytes at the peak of one training process: an estimate, not a bound.

    Attributes:
        device: of the GPU that the process has, or of the host where it trains on the CPU.
        host: of the host's memory beside it; the sum over all processes where several train together.
        least: the part of ``device`` that is certain: weights, gradients and what the optimizer keeps.
        note: in words, what the estimate does not know; else empty.
        on_cpu: whether the device is the host.
    """

    device: int
    host: int
    least: int = 0
    note: str = ""
    on_cpu: bool = False

    def of_one(self, processes: int) -> int:
        """Return what one of several processes takes on device and host, as a stage's record counts it."""
        return (self.device + self.host) // processes if self.on_cpu else self.device + self.host // processes


def training_peak(
    skeleton: nn.Module,
    settings: TrainSettings,
    longest: int,
    device: str,
    placement: Placement = "device",
    processes: int = 1,
    method: Compressor | None = None,
    loaded: nn.Module | None = None,
) -> TrainingPeak:
    """Return the peak of a training of P parameters, F bytes of frozen ones and buffers, and S bytes of state

        weights 4·P + F, gradients 4·P, state S (`STATE_BYTES`)
        pass    weights + state + what one pass takes beside them (`pass_memory.pass_peak`), gradients included
        update  weights + gradients + state + copies of the optimizer
        device  max(pass, update), on the CPU with the base and against loading: weights + the checkpoint's pages

    Where passes are accumulated, gradients are there during the whole pass. ``fsdp2`` divides weights, gradients and
    state by the processes and gathers two blocks at a time; DDP (``device`` with several processes) holds all of them
    and buckets of the gradients.

    Args:
        skeleton: the dense model on the meta device.
        settings: optimizer, micro batch, checkpointing, arithmetic.
        longest: tokens of the longest training example; batches are as wide as their longest.
        device: ``cpu`` or ``cuda``.
        placement: see `Placement`.
        processes: that train together.
        method: one that trains while it compresses, None for finetuning and recovery.
        loaded: what is read from disk, where that is not the skeleton (adapters are made beside it).
    """
    trained = skeleton if method is None else trained_skeleton(method, skeleton)
    kinds = _Parameters.of(trained)
    micro, accumulated = settings.split(processes)
    kind = device.partition(":")[0]
    wide = settings.precision == "bfloat16" or (settings.precision == "auto" and kind != "cpu")
    activations = pass_peak(trained, micro, longest, settings.gradient_checkpointing, wide)
    state, note = _state(settings.optimizer, placement, kinds)
    weights, gradients = 4 * kinds.trained + kinds.frozen_bytes, 4 * kinds.trained
    gathered = 0
    if placement == "fsdp2" and processes > 1:
        weights, gradients, state = (-(-part // processes) for part in (weights, gradients, state))
        gathered = 2 * 2 * 4 * _largest_block(trained)  # two blocks with their gradients, in float32
    elif processes > 1:
        gathered = gradients  # buckets of DDP
    moments = state if placement == "host-moments" else 0
    fixed_bytes = weights + gathered + state - moments
    device_bytes = fixed_bytes + max(
        _pass(activations, gradients, kinds, accumulated > 1 or processes > 1),
        gradients + _copies(settings.optimizer, placement, kinds, kind, processes),
    )
    loading = loading_bytes(loaded or skeleton, "float32")
    least = weights + gradients + state - moments
    if not activations.counted:
        note = "; ".join(filter(None, (note, "activations are guessed from the linear layers")))
    if kind == "cpu":
        process_bytes = usual_bytes() + max(device_bytes, loading)
        return TrainingPeak(process_bytes, (processes - 1) * process_bytes, least, note, on_cpu=True)
    # Weights pass through the host when they are read, and once more when a checkpoint is kept.
    copied = 4 * model_size(skeleton).parameters
    host = processes * (_GPU_BASE_BYTES + max(loading, moments + copied))
    return TrainingPeak(device_bytes, host, least, note)


@dataclass(frozen=True)
class _Parameters:
    """Parameters that are trained, bytes of those that are not and of buffers, the largest, rows and columns."""

    trained: int
    frozen_bytes: int
    largest: int
    sides: int

    @classmethod
    def of(cls, model: nn.Module) -> _Parameters:
        tensors = _distinct(model)
        trained = [p for p in tensors if p.requires_grad]
        buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
        return cls(
            sum(p.numel() for p in trained),
            sum(4 * p.numel() for p in tensors if not p.requires_grad) + buffers,
            max((p.numel() for p in trained), default=0),
            sum(sum(p.shape) if p.ndim > 1 else p.numel() for p in trained),
        )


def _distinct(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters, tied ones once; a skeleton declares ties and does not make them."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return [parameter for name, parameter in model.named_parameters() if name not in tied]


def _state(optimizer: str, placement: Placement, kinds: _Parameters) -> tuple[int, str]:
    """Return the bytes that the optimizer keeps between updates, and what is not known of them."""
    if placement == "8-bit":
        return round(STATE_BYTES["adamw_8bit"] * kinds.trained), ""
    if optimizer == "adafactor":
        return 4 * kinds.sides, ""
    if optimizer in STATE_BYTES:
        return round(STATE_BYTES[optimizer] * kinds.trained), ""
    return _ADAMW_BYTES * kinds.trained, f"of optimizer '{optimizer}' the memory is not known; AdamW's is assumed"


def _pass(activations: PassPeak, gradients: int, kinds: _Parameters, all_there: bool) -> int:
    """Return what a pass takes beside weights and state, its gradients included."""
    return gradients + activations.later if all_there else activations.first


def _copies(optimizer: str, placement: Placement, kinds: _Parameters, device: str, processes: int) -> int:
    """Return what the optimizer copies while it updates."""
    if placement == "host-moments":
        return 2 * _ADAMW_BYTES * kinds.largest  # one tensor's moments are at work while the next one's come
    if optimizer in _IN_PLACE:
        return 0
    if device != "cpu" and optimizer in _FOREACH and placement != "8-bit":
        return 4 * kinds.trained // (processes if placement == "fsdp2" else 1)
    return 2 * 4 * kinds.largest


def _largest_block(model: nn.Module) -> int:
    try:
        names = find_blocks(model).names
    except NotStreamable:
        return model_size(model).parameters
    return max(sum(p.numel() for p in model.get_submodule(name).parameters()) for name in names)
