"""How much memory fit and compress take at their peak, by formula, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..foundation.memory import BASE_BYTES, USUAL_BYTES
from ..models.blocks import find_blocks
from ..models.footprint import loading_bytes
from ..models.loading import DTYPES, own_dtype
from ..models.matrices import model_size
from ..models.streamed import NotStreamable
from .calibration.in_memory import GRAM_BYTES
from .calibration.offload_cache import LIMIT_BYTES
from .calibration.sequential_statistics import INPUTS_BYTES
from .estimates import decompose_bytes, statistic_bytes
from .fitted import BUFFER_BYTES
from .groups import Group
from .matrixwise import MatrixCompressor
from .ranks.policies.base import parse_policy
from .working import rows_bytes, svd_bytes


@dataclass(frozen=True)
class Calibration:
    """What is read while fitting: examples, examples per batch, the longest one in tokens, and by autocast or not."""

    samples: int
    batch_size: int
    length: int
    autocast: bool = False


@dataclass(frozen=True)
class Peak:
    """Bytes at the peak; an upper bound except for activations, which are estimated.

    Attributes:
        host: of the process's resident memory.
        device: of a GPU's memory; 0 on the CPU.
        least: where the work is done, what is certain: the weights that are held and the largest decomposition.
        disk: hidden states that wait on disk, at most.
        usual: of the host, an estimate: what processes take as a rule, and no more factors than there are.
    """

    host: int
    device: int
    least: int
    disk: int = 0
    usual: int = 0

    @property
    def total(self) -> int:
        """Host, as estimated, and device together, as a stage's record counts them."""
        return (self.usual or self.host) + self.device


def fit_peak(
    method: MatrixCompressor, skeleton: Any, layer_by_layer: bool, device: str, calibration: Calibration | None = None
) -> Peak:
    """Return the peak of `MatrixCompressor.fit`, on the CPU

        layer by layer  base + buffer + max(block + activations, working set) + statistics of a block + waiting states
        whole           base + model + max(buffer + max(activations, working set) + statistics, checkpoint)

    with the model and a block (or all that is outside the blocks) in float32, the working set that of the largest
    matrix including its weight, and the buffer `BUFFER_BYTES` and one matrix's factors. On a GPU the model or block,
    activations and working set are there, and base, buffer and what waits are on the host.

    Args:
        method: says the working set and the statistics of a matrix.
        skeleton: on the meta device.
        layer_by_layer: whether weights stay on disk and are read layer by layer.
        device: torch device.
        calibration: None for methods that read no data.
    """
    groups = method.groups(skeleton)
    shapes = {(g.out_features, g.in_features) for g in groups if not g.embedding}
    # On a GPU the eigen form may take more than the LAPACK that a method's own bound is made of.
    working = max(8 * m * n + max(decompose_bytes(method, m, n), svd_bytes(m, n, device=device)) for m, n in shapes)
    rows = [
        8 * g.out_features * g.in_features + rows_bytes(g.out_features, g.in_features) for g in groups if g.embedding
    ]
    working = max([working, *rows])
    buffer = BUFFER_BYTES + max(_factors(group) for group in groups)
    filled = min(buffer, sum(_factors(group) for group in groups))
    weights = 0 if layer_by_layer else 4 * model_size(skeleton).parameters
    statistics = activations = waiting = disk = 0
    if calibration is not None:
        parts = _Parts.of(skeleton)
        statistics = _statistics(method, groups, parts, layer_by_layer)
        activations = _activations(skeleton, method, groups, parts, calibration, layer_by_layer)
        if parse_policy(method.policy).needs_slopes:  # the gradients of all weights at once
            activations += 4 * sum(group.out_features * group.in_features for group in groups)
        if calibration.autocast and method.requirements.gradients:  # the backward pass holds the weights in 16 bits
            activations += 2 * (max(parts.block, parts.outside) if layer_by_layer else model_size(skeleton).parameters)
        if layer_by_layer:
            weights = 4 * max(parts.block, parts.outside)
            width = int(skeleton.get_input_embeddings().embedding_dim)
            states = 4 * calibration.samples * calibration.length * width
            states *= len(parts.names) + 1 if method.requirements.gradients else 1
            waiting, disk = min(states, LIMIT_BYTES), max(min(states, INPUTS_BYTES) - LIMIT_BYTES, 0)
            if method.requirements.gradients:  # Gram matrices of gradients wait too, as they come last block first
                disk += sum(statistic_bytes(method, group) for group in groups)
    busy = max(weights + activations, working) if layer_by_layer else weights + max(activations, working)
    least = max(weights, working) if layer_by_layer else weights + working
    resident = busy if device == "cpu" else weights

    def host(base: int, factors: int, pages: int) -> int:
        return base + max(factors + resident + statistics + waiting, 0 if layer_by_layer else weights + pages)

    bound, usual = host(BASE_BYTES, buffer, _stored(skeleton)), host(USUAL_BYTES, filled, _pages(skeleton))
    return Peak(bound, 0 if device == "cpu" else busy + statistics, least, disk, usual)


def compress_peak(method: MatrixCompressor, skeleton: Any, layer_by_layer: bool, device: str) -> Peak:
    """Return the peak of `MatrixCompressor.compress` and of writing its result, on the CPU

        layer by layer  base + largest tensor as stored, in float32 and as written (the bound: 12 bytes a parameter)
                        or largest factors twice
        whole           base + model + max(largest factors twice, checkpoint)

    Args:
        method, skeleton, layer_by_layer, device: as in `fit_peak`.
    """
    factors = 2 * max(_factors(group) for group in method.groups(skeleton))
    elements, stored = max(parameter.numel() for parameter in skeleton.parameters()), _itemsize(skeleton)
    largest = 3 * 4 * elements
    model = 0 if layer_by_layer else 4 * model_size(skeleton).parameters
    work = max(factors, largest) if layer_by_layer else model + max(factors, _stored(skeleton))
    bound = BASE_BYTES + work
    # In float32 the tensor is the file's pages all the way; else it is read, widened and written in its own dtype.
    copied = elements * (4 if stored == 4 else 4 + 2 * stored)
    certain = max(factors, copied) if layer_by_layer else model
    usual = USUAL_BYTES + (certain if layer_by_layer else model + max(factors, _pages(skeleton)))
    if layer_by_layer or device == "cpu":  # nothing is computed: tensors go from file to file
        return Peak(bound, 0, certain, usual=usual)
    return Peak(bound, model + factors, model, usual=usual)


def _pages(skeleton: Any) -> int:
    """Return the bytes of the checkpoint's pages beside its weights in float32, which are the pages in that dtype."""
    return loading_bytes(skeleton, "float32") - 4 * model_size(skeleton).parameters


def _stored(skeleton: Any) -> int:
    """Return the bytes of the checkpoint: while a model is loaded whole, pages of its files are in memory too."""
    return model_size(skeleton).parameters * _itemsize(skeleton)


def _itemsize(skeleton: Any) -> int:
    return DTYPES[own_dtype(skeleton.config)].itemsize


def _factors(group: Group) -> int:
    m, n = group.out_features, group.in_features
    return 4 * min(m, n) * (m + n + 1)


@dataclass(frozen=True)
class _Parts:
    """Parameters of the largest block and of all that is outside the blocks, and the blocks' names."""

    names: tuple[str, ...]
    block: int
    outside: int

    @classmethod
    def of(cls, skeleton: nn.Module) -> _Parts:
        try:
            blocks = find_blocks(skeleton).names
        except NotStreamable:
            return cls((), 0, model_size(skeleton).parameters)
        sizes = [sum(p.numel() for p in skeleton.get_submodule(name).parameters()) for name in blocks]
        return cls(blocks, max(sizes), model_size(skeleton).parameters - sum(sizes))

    def inside(self, groups: list[Group]) -> list[list[Group]]:
        """Return the groups by the block of their first member, those outside the blocks as one."""
        by_block: dict[str, list[Group]] = {}
        for group in groups:
            by_block.setdefault(next((b for b in self.names if group.name.startswith(f"{b}.")), ""), []).append(group)
        return list(by_block.values())


def _statistics(method: MatrixCompressor, groups: list[Group], parts: _Parts, layer_by_layer: bool) -> int:
    sizes = [statistic_bytes(method, group) for group in groups]
    if layer_by_layer:
        largest = max(sum(statistic_bytes(method, group) for group in part) for part in parts.inside(groups))
        return largest + 2 * max(sizes)  # a batch's share, and the sum with it
    return min(sum(sizes), max(GRAM_BYTES, max(sizes))) + 2 * max(sizes)


def _activations(
    skeleton: Any,
    method: MatrixCompressor,
    groups: list[Group],
    parts: _Parts,
    calibration: Calibration,
    layer_by_layer: bool,
) -> int:
    """Estimate what a batch leaves in memory: every linear layer's input and output, attention scores, logits."""
    tokens, config = calibration.batch_size * calibration.length, skeleton.config.get_text_config()
    part = max(parts.inside(groups), key=len)
    layers = 4 * tokens * sum(m.in_features + m.out_features for g in part for m in g.members)
    layers += 8 * calibration.batch_size * (getattr(config, "num_attention_heads", None) or 1) * calibration.length**2
    widest = (
        20 * tokens * max(group.in_features for group in groups)
    )  # an input as float32 without padding, and float64
    logits = 4 * tokens * int(config.vocab_size)
    if not method.requirements.gradients:
        return max(layers + widest, 0 if layer_by_layer else logits)
    squares = max(min(m.out_features * m.in_features, calibration.length**2) for g in groups for m in g.members)
    layers = 2 * layers * (1 if layer_by_layer else max(len(parts.names), 1)) + 8 * calibration.batch_size * squares
    return max(layers, 4 * logits) if layer_by_layer else layers + 4 * logits
