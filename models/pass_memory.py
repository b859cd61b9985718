"""The memory of one pass through a model, by running the model's own code on tensors without data.

Formulas of activations hold for one architecture each. Fake tensors (`torch._subclasses.FakeTensorMode`) go through the
same operators as real ones, so what autograd keeps, what checkpointing computes again, which copies the loss makes and
which weights autocast copies is counted and not guessed; only scratch memory inside kernels is missing.
"""

from __future__ import annotations

import copy
import hashlib
import os
import sys
import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ..foundation.remembered import remembered
from .blocks import Blocks, find_blocks, hidden_in
from .matrices import model_size
from .streamed import NotStreamable

_FEW, _MORE = 2, 3
"""Blocks of the two models that are run; what more blocks take is extrapolated from them, phase by phase."""
_PHASES = ("forward", "last block", "between", "first block")
"""Of a pass: forward with loss and the backward of the head, then the backward of the blocks."""


@dataclass(frozen=True)
class PassPeak:
    """Bytes beside the weights at the peak of a pass.

    Attributes:
        first: of a pass that starts without gradients; those that it has made by then are counted.
        later: of a pass that adds to the gradients of an earlier one; these are not counted.
        counted: whether the model's code was run; else by its linear layers, roughly.
    """

    first: int
    later: int
    counted: bool = True


_known: dict[str, PassPeak] = {}
_forwards: dict[str, int] = {}


def pass_peak(skeleton: nn.Module, examples: int, tokens: int, checkpointing: bool, wide: bool) -> PassPeak:
    """Return the peak of one forward and backward pass in float32 weights.

    Args:
        skeleton: on the meta device, or anywhere else; parameters that need no gradient get none.
        examples, tokens: shape of the micro batch.
        checkpointing: whether activations of a block are computed again in the backward pass.
        wide: whether products are bfloat16 by autocast.
    """
    key = fingerprint(skeleton, examples, tokens, checkpointing, wide)
    if key not in _known:
        try:
            counted = remembered(key, lambda: astuple(_count(skeleton, examples, tokens, checkpointing, wide)))
            _known[key] = PassPeak(*counted)
        except Exception:  # foreign code may ask for values, which fake tensors do not have
            _known[key] = _guess(skeleton, examples * tokens, checkpointing)
    return _known[key]


def forward_peak(skeleton: nn.Module, examples: int, tokens: int, dtype: torch.dtype) -> int:
    """Return the bytes beside the weights at the peak of a pass that keeps keys and values and makes the last logits.

    Args:
        skeleton: on the meta device, or anywhere else.
        examples, tokens: shape of the batch.
        dtype: of the weights.
    """
    key = fingerprint(skeleton, examples, tokens, dtype)
    if key not in _forwards:
        try:
            _forwards[key] = remembered(key, lambda: _count_forward(skeleton, examples, tokens, dtype))
        except Exception:  # foreign code may ask for values, which fake tensors do not have
            logits = examples * int(skeleton.config.get_text_config().vocab_size)  # type: ignore[operator, union-attr]
            _forwards[key] = dtype.itemsize * logits
    return _forwards[key]


def _count_forward(skeleton: nn.Module, examples: int, tokens: int, dtype: torch.dtype) -> int:
    blocks = _blocks(skeleton)
    asked = (examples, tokens, dtype)
    if len(blocks) <= _MORE:
        return max(_run_forward(skeleton, blocks, len(blocks), *asked).values())
    few, more = (_run_forward(skeleton, blocks, count, *asked) for count in (_FEW, _MORE))
    return max(few[phase] + (len(blocks) - _FEW) * (more[phase] - few[phase]) for phase in _PHASES)


def _run_forward(
    skeleton: nn.Module, blocks: list[str], count: int, examples: int, tokens: int, dtype: torch.dtype
) -> dict[str, int]:
    """Run the model with its first blocks alone; what follows the last block counts as a phase of its own."""
    model = shortened(skeleton, blocks, count).eval()
    with without_data(), torch.inference_mode():
        make_fake(model, dtype)
        ids, mask = torch.zeros(examples, tokens, dtype=torch.long), torch.ones(examples, tokens, dtype=torch.long)
        with Live([*model.parameters(), *model.buffers()]) as live:
            if blocks:
                last = model.get_submodule(blocks[count - 1])
                last.register_forward_hook(lambda *_: live.enter("last block"))
            logits = model(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1)
            del logits
            return live.peaks


def fingerprint(skeleton: nn.Module, *more: Any) -> str:
    """Return a hash of all that a count depends on: shapes, the files with the code that runs, versions."""
    config: Any = skeleton.config
    shapes = [(name, tuple(p.shape), p.requires_grad) for name, p in skeleton.named_parameters()]
    shapes += [(name, tuple(b.shape), False) for name, b in skeleton.named_buffers()]
    types = {type(module) for module in skeleton.modules()} | {Live, Blocks}
    code = sorted((kind.__module__, kind.__qualname__, _file_state(kind.__module__)) for kind in types)
    versions = torch.__version__, transformers.__version__
    return hashlib.sha256(repr((config.to_json_string(), shapes, more, code, versions)).encode()).hexdigest()


def _file_state(module: str) -> tuple[int, int]:
    """Return size and time of the last change (nanoseconds) of a module's file, zeros where it has none."""
    try:
        state = os.stat(sys.modules[module].__file__ or "")
    except (KeyError, AttributeError, OSError):
        return 0, 0
    return state.st_size, state.st_mtime_ns


def _count(skeleton: nn.Module, examples: int, tokens: int, checkpointing: bool, wide: bool) -> PassPeak:
    blocks = _blocks(skeleton)
    if len(blocks) <= _MORE:
        phases = _run(skeleton, blocks, len(blocks), examples, tokens, checkpointing, wide)
        first, later = (max(peaks.values()) for peaks in phases)
        return PassPeak(first, later)
    few = _run(skeleton, blocks, _FEW, examples, tokens, checkpointing, wide)
    more = _run(skeleton, blocks, _MORE, examples, tokens, checkpointing, wide)
    steps = len(blocks) - _FEW
    # Blocks between the first and the last take something between the two.
    first, later = (
        max(small[phase] + steps * (large[phase] - small[phase]) for phase in _PHASES if phase != "between")
        for small, large in zip(few, more, strict=True)
    )
    return PassPeak(first, later)


def _blocks(skeleton: nn.Module) -> list[str]:
    try:
        return list(find_blocks(skeleton).names)
    except NotStreamable:
        return []


@contextmanager
def without_data() -> Iterator[None]:
    """Make tensors without data, on the CPU."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _run(
    skeleton: nn.Module, blocks: list[str], count: int, examples: int, tokens: int, checkpointing: bool, wide: bool
) -> list[dict[str, int]]:
    """Run a pass over the model with its first blocks alone.

    Returns by phase what it takes beside the weights, and beside weights and the gradients made so far: in a later pass
    a new gradient is added to the old one and freed.
    """
    model = shortened(skeleton, blocks, count)
    with without_data():
        make_fake(model, torch.float32)
        if checkpointing:
            model.gradient_checkpointing_enable()
        ids, mask = torch.zeros(examples, tokens, dtype=torch.long), torch.ones(examples, tokens, dtype=torch.long)
        with Live([*model.parameters(), *model.buffers()]) as live, marked(model, blocks[:count], live):
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(live.keep_gradient)
            with torch.autocast("cpu", torch.bfloat16, enabled=wide):
                loss = model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss
            loss.backward()
            return [live.peaks, live.later]


def shortened(skeleton: nn.Module, blocks: list[str], count: int) -> Any:
    """Return a copy in training mode with the first blocks alone."""
    model: Any = copy.deepcopy(skeleton)
    if blocks:
        parent, _, _ = blocks[0].rpartition(".")
        holder, _, name = parent.rpartition(".")
        setattr(model.get_submodule(holder), name, model.get_submodule(parent)[:count])
    return model.train()


def make_fake(model: Any, dtype: torch.dtype) -> None:
    """Give a model parameters without data."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fresh = torch.empty(parameter.shape, dtype=dtype)
                module._parameters[name] = nn.Parameter(fresh, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    # Tied parameters became separate ones in the loop.
    model.tie_weights()


class Live(TorchDispatchMode):
    """Counts the bytes of the storages that are alive.

    Args:
        known: tensors that are not counted.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.gradients = 0
        self.phase, self.peaks, self.later = _PHASES[0], dict.fromkeys(_PHASES, 0), dict.fromkeys(_PHASES, 0)
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def enter(self, phase: str) -> None:
        """Say what runs from now on."""
        self.phase = phase
        self._note()

    def keep_gradient(self, parameter: Tensor) -> None:
        """Take note of a gradient that stays."""
        assert parameter.grad is not None
        self.gradients += parameter.grad.untyped_storage().nbytes()

    def _note(self) -> None:
        self.peaks[self.phase] = max(self.peaks[self.phase], self.now)
        self.later[self.phase] = max(self.later[self.phase], self.now - self.gradients)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in tree_iter(result):
            if isinstance(item, Tensor):
                self._add(item.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address in self._seen:
            return
        self._seen.add(address)
        self.now += size
        self._note()
        weakref.finalize(storage, self._drop, address, size)

    def _drop(self, address: int, size: int) -> None:
        # A later storage may get the same address.
        self._seen.discard(address)
        self.now -= size


@contextmanager
def marked(model: nn.Module, blocks: list[str], live: Live) -> Iterator[None]:
    """Tell when the backward pass comes to the last block, leaves it, and comes to the first one."""

    # A hook runs when its tensor's gradient is there: for a block's output that is before the block's own backward, for
    # its input after it.
    def when_reached(tensor: Tensor, phase: str) -> None:
        if tensor.requires_grad:
            tensor.register_hook(lambda _: live.enter(max(live.phase, phase, key=_PHASES.index)))

    if not blocks:
        yield
        return
    first, last = model.get_submodule(blocks[0]), model.get_submodule(blocks[-1])
    hooks = [
        last.register_forward_pre_hook(
            lambda _, args, kwargs: when_reached(hidden_in(args, kwargs), _PHASES[2]), with_kwargs=True
        ),
        last.register_forward_hook(lambda _, args, output: when_reached(Blocks.unwrap(output), _PHASES[1])),
        first.register_forward_hook(lambda _, args, output: when_reached(Blocks.unwrap(output), _PHASES[3])),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _guess(skeleton: nn.Module, tokens: int, checkpointing: bool) -> PassPeak:
    """Estimate from the inputs and outputs of the linear layers, twice for what lies between them, and the logits."""
    config: Any = skeleton.config.get_text_config()  # type: ignore[operator, union-attr]
    layers = [module for module in skeleton.modules() if isinstance(module, nn.Linear)]
    blocks = max(int(getattr(config, "num_hidden_layers", None) or 1), 1)
    states = 2 * 4 * tokens * sum(layer.in_features + layer.out_features for layer in layers)
    if checkpointing:
        states = states // blocks + 4 * tokens * blocks * int(getattr(config, "hidden_size", 0))
    least = states + 3 * 4 * tokens * int(config.vocab_size)
    return PassPeak(least + 4 * model_size(skeleton).parameters, least, counted=False)
