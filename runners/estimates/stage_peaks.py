"""What trainings, evaluations and rounding will take at their peak, for records, tables and refusals."""

from __future__ import annotations

from typing import Any

from ...evals.base import Benchmark, EvalSettings
from ...evals.engines.base import BATCH_TOKENS
from ...foundation.errors import UserError
from ...foundation.memory import free_memory, usual_bytes
from ...methods.memory import Peak
from ...models.footprint import loading_bytes, token_bytes
from ...models.loading import DTYPES, own_dtype
from ...models.matrices import low_rank_layers, model_size
from ...models.pass_memory import forward_peak
from ...models.quantised.model import dense_matrices
from ...models.quantised.scheme import Scheme
from ...models.quantised.size import correction_bytes, packed_bytes
from ...models.token_scores import LOGIT_BYTES
from ..specs import Stage
from ..stage_results import RecordedMemory
from ..training.memory import TrainingPeak
from ..training.settings import Placement, TrainSettings

_GIB = 2**30


def evaluation_peak(
    skeleton: Any, benchmark: Benchmark, settings: EvalSettings, longest: int, dtype: str, device: str
) -> TrainingPeak:
    """Return the peak of an evaluation by the engine ``transformers``

        likelihoods  weights + a pass over a batch of the longest sequences + a block of logits (`TokenScorer`)
        completions  weights + max(a pass over the longest prompts, keys and values at the end and a layer's copy)

    on the CPU with the base, and against loading: weights + the checkpoint's pages.

    Args:
        skeleton: on the meta device.
        benchmark, settings: what is asked.
        longest: tokens of the longest sequence, completion included.
        dtype: of the weights; ``auto`` for the checkpoint's own.
        device: torch device.
    """
    name = own_dtype(skeleton.config) if dtype == "auto" else dtype
    kind, loaded = DTYPES[name], loading_bytes(skeleton, name)
    weights = model_size(skeleton).parameters * kind.itemsize
    batch = min(settings.batch_size, (settings.limit or settings.batch_size) * settings.samples)
    if benchmark.is_generating(settings):
        new = getattr(benchmark, "max_new_tokens", lambda _: settings.max_new_tokens or 0)(settings)
        work = forward_peak(skeleton, batch, max(longest - new, 1), kind)
        layers = int(getattr(skeleton.config.get_text_config(), "num_hidden_layers", None) or 1)
        cache = token_bytes(skeleton.config, kind.itemsize) * batch * longest
        work = max(work, cache + 2 * cache // layers)
    else:
        batch = min(batch, max(1, BATCH_TOKENS // longest))
        # A model whose logits cannot be made in blocks takes more: all of a batch at once.
        work = forward_peak(skeleton, batch, longest, kind) + 2 * LOGIT_BYTES
    if device == "cpu":
        return TrainingPeak(usual_bytes() + max(weights + work, loaded), 0, weights, on_cpu=True)
    return TrainingPeak(weights + work, usual_bytes(device) + loaded, weights)


def quantise_peak(skeleton: Any, scheme: Scheme, width: str, device: str, rank: int = 0) -> Peak:
    """Return the peak of rounding a checkpoint

        base + max(weights + the checkpoint's pages, weights + packed tensors + 16 bytes an entry of the largest tensor)

    The last are, in float32, the scales of all entries and three steps from quotients to integers.

    Args:
        skeleton: dense or factorised, on the meta device.
        scheme: what is rounded.
        width: dtype that the weights are loaded in.
        device: torch device.
        rank: of the corrections of dense matrices, whose factors are held in float32 and packed.
    """
    itemsize, loaded = DTYPES[width].itemsize, loading_bytes(skeleton, width)
    weights = model_size(skeleton).parameters * itemsize
    factors = [max(layer.lr_a.numel(), layer.lr_b.numel()) for layer in low_rank_layers(skeleton).values()]
    largest = max([*factors, *(matrix.parameters for matrix in dense_matrices(skeleton, scheme))], default=0)
    # With a width of 0 only what is rounded counts; the others are the model's own tensors.
    work = weights + packed_bytes(skeleton, scheme, 0, rank) + 16 * largest
    if rank:
        work += 2 * sum(correction_bytes(matrix, rank) for matrix in dense_matrices(skeleton, scheme))
    if device == "cpu":
        peak = usual_bytes() + max(loaded, work)
        return Peak(peak, 0, weights, usual=peak)
    host = usual_bytes(device) + loaded
    return Peak(host, work, weights, usual=host)


def placement_of(stage: Stage, sharded: bool) -> Placement:
    """Return where a training stage keeps what belongs to its weights; shares where several processes share them."""
    if stage.placement:
        return stage.placement.placement
    return "fsdp2" if sharded else "device"


def recorded(peak: TrainingPeak, processes: int = 1) -> RecordedMemory:
    """Return what a stage's record says of its peak, of one process, as its measured peak is."""
    note = {"note": peak.note} if peak.note else {}
    return RecordedMemory(load="whole", why="", predicted_peak_bytes=peak.of_one(processes), **note)


def advise(settings: TrainSettings) -> str:
    """Return what makes a training smaller, as it is typed."""
    changes = []
    if not settings.gradient_checkpointing:
        changes.append("gradient_checkpointing: true")
    if settings.micro_batch_size > 1:
        changes.append(f"micro_batch_size: {max(settings.micro_batch_size // 4, 1)}")
    if settings.optimizer != "adafactor":
        changes.append("optimizer: adafactor")
    fields = f"{' and '.join(changes)} under finetune: and recover: of a --config file, " if changes else ""
    return f"{fields}--accelerate with a file that names several GPUs, or a machine with more memory"


def check_host(needed: int, title: str) -> list[str]:
    """Return a warning if what a stage on a GPU takes of the host's memory may not fit.

    Args:
        needed: bytes of the host.
        title: the stage's name.
    """
    free = free_memory("cpu")
    if needed <= free:
        return []
    return [
        f"{title} may need {needed / _GIB:.1f} GiB of the host's memory beside the GPU's, but {free / _GIB:.1f} GiB "
        "are free there; use fewer --workers, or a machine with more memory"
    ]


def check_training(
    peak: TrainingPeak, title: str, settings: TrainSettings, device: str, free: int | None = None
) -> str:
    """Return a warning if a training may not fit into free memory, of a GPU or of the host beside it, else nothing.

    Args:
        peak: of one process.
        title: the stage's name.
        settings: of the training.
        device: torch device.
        free: bytes there; None measures.

    Raises:
        UserError: weights, gradients and the optimizer's state alone do not fit.
    """
    available = free_memory(device) if free is None else free
    limits = f"{available / _GIB:.1f} GiB are free on {device}; use {advise(settings)}"
    if peak.least > available:
        raise UserError(
            f"{title} needs at least {peak.least / _GIB:.1f} GiB for weights, gradients and the state of "
            f"{settings.optimizer}, but {limits}"
        )
    notes = (
        [] if peak.device <= available else [f"{title} may need {peak.device / _GIB:.1f} GiB at its peak, but {limits}"]
    )
    return "; ".join(notes if peak.on_cpu else [*notes, *check_host(peak.host, title)])
