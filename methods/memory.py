"""How much memory fit and compress take at their peak, by formula, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..foundation.memory import BASE_BYTES, usual_bytes
from ..models.footprint import loading_bytes
from ..models.loading import DTYPES, own_dtype
from ..models.matrices import model_size
from .calibration.batch_memory import BatchPeak, batch_peak, guess, shared_inputs
from .calibration.driver import MomentCompressor
from .calibration.in_memory import GRAM_BYTES
from .calibration.logit_batches import most_examples, vocabulary_of
from .calibration.offload_cache import LIMIT_BYTES
from .calibration.sequential_statistics import INPUTS_BYTES
from .estimates import regular_bytes, statistic_bytes
from .fit_steps import (
    Calibration,
    Parts,
    Passes,
    Steps,
    factor_bytes,
    matrix_bytes,
)
from .fitted import BUFFER_BYTES
from .groups import Group
from .matrixwise import MatrixCompressor
from .ranks.policies.base import parse_policy
from .ranks.probe import PROBE_BATCH

__all__ = ["Calibration", "Peak", "compress_peak", "fit_peak"]


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
    method: MatrixCompressor,
    skeleton: Any,
    layer_by_layer: bool,
    device: str,
    calibration: Calibration | None = None,
    kept_parts: Mapping[str, int] | None = None,
) -> Peak:
    """Return the peak of `MatrixCompressor.fit`, on the CPU

        passes          what a batch takes (`batch_memory.batch_peak`), layer by layer with the weights of a block,
                        or of all that is outside the blocks
        layer by layer  base + sums of a block + waiting states + factors + max(passes, working set)
        whole           base + model + max(sums + max(passes, factors + working set), checkpoint)

    with the model and a block in float32, the working set that of the largest matrix including its weight, and the
    factors no more than `BUFFER_BYTES` and one matrix's. Fisher information is complete before the first factors exist,
    and so are sums that fit into one pass. On a GPU the model or block, passes and working sets are there, and base,
    factors and what waits are on the host. On the CPU ``usual`` goes through the fit step by step (`fit_steps`) and
    adds up only what is there at the same time.

    Args:
        method: says the working set and the statistics of a matrix.
        skeleton: on the meta device.
        layer_by_layer: whether weights stay on disk and are read layer by layer.
        device: torch device.
        calibration: None for methods that read no data.
        kept_parts: that are kept of each group's factors; None for all.
    """
    groups = method.groups(skeleton)
    working = max(matrix_bytes(method, group, device) for group in groups)
    buffer = BUFFER_BYTES + max(factor_bytes(group) for group in groups)
    model, parts, passes = 4 * model_size(skeleton).parameters, Parts.of(skeleton), Passes()
    if calibration is not None:
        passes = _passes(method, skeleton, groups, parts, calibration, layer_by_layer)
    steps = Steps(method, groups, kept_parts or {}, layer_by_layer, _itemsize(skeleton), calibration, device)
    weights = model
    if layer_by_layer:
        weights = 4 * max(parts.block, parts.outside) if calibration else 0
    busy = max(passes.bytes, working) if layer_by_layer else model + max(passes.bytes, working)
    least = max(weights, working) if layer_by_layer else weights + working

    def host(base: int, factors: int, pages: int) -> int:
        taken = passes.sums + passes.waiting
        if device != "cpu":
            taken += passes.back + factors + weights
        elif passes.first:  # what waits for the way back is gone when the first matrix is decomposed
            taken += max(passes.bytes + passes.back, factors + working)
        else:
            taken += passes.back + factors + max(passes.bytes, working)
        if layer_by_layer:
            return base + taken
        return base + max(taken + (model if device == "cpu" else 0), model + pages)

    bound = host(BASE_BYTES, buffer, _stored(skeleton))
    if device != "cpu":
        usual = host(usual_bytes(device), steps.fullest(), _pages(skeleton))
        return Peak(bound, busy + passes.sums, least, passes.disk, min(usual, bound))
    if layer_by_layer:
        usual = usual_bytes(device) + steps.streamed(passes, parts)
    else:
        usual = usual_bytes(device) + model + max(steps.whole(passes), _pages(skeleton))
    return Peak(bound, 0, least, passes.disk, min(usual, bound))


def _passes(
    method: MatrixCompressor,
    skeleton: Any,
    groups: list[Group],
    parts: Parts,
    calibration: Calibration,
    layer_by_layer: bool,
) -> Passes:
    gradients, moments = method.requirements.gradients, isinstance(method, MomentCompressor)
    slopes = parse_policy(method.policy).needs_slopes  # the gradients of all weights at once, after the fit
    batches = _batches(skeleton, method, groups, calibration)
    sums = _sums(method, skeleton, groups)
    inputs, outputs = ([size[side] for size in sums.values()] for side in (0, 1))
    narrow = 2 if calibration.autocast and gradients else 0  # the backward pass holds the weights in 16 bits
    if not layer_by_layer:
        peak = max(batch.whole for batch in batches) + narrow * model_size(skeleton).parameters
        peak += 4 * sum(group.out_features * group.in_features for group in groups) if slopes else 0
        sum_bytes = [min(sum(sizes), max(GRAM_BYTES, *sizes)) for sizes in (inputs, outputs)]
        first = not slopes and max(sum(inputs), sum(outputs)) <= GRAM_BYTES
        return Passes(peak, sum(sum_bytes), first=first)
    stored = 0 if _itemsize(skeleton) == 4 else _itemsize(skeleton)  # of a tensor that is being read, beside float32
    embedding = skeleton.get_input_embeddings().weight.numel()
    forwards, backwards = (
        _streamed_bytes(batch, parts, stored, embedding, narrow if kind else 0)
        for kind, batch in ((False, batches[0]), (True, batches[-1]))
    )
    width = int(skeleton.get_input_embeddings().embedding_dim)
    states = 4 * calibration.samples * calibration.length * width
    given = -(-calibration.samples // calibration.batch_size) * max(batch.given for batch in batches)
    # Both kinds of sums have states of their own; the last matrices' sums stay while the next block's come.
    ahead = states + given if moments or not gradients else 0
    back = states * (len(parts.names) + 1) + given if gradients else 0
    back += states if gradients and not moments and any(g.embedding and g.reader for g in groups) else 0  # of the head
    waiting = min(ahead, LIMIT_BYTES) + min(sum(outputs), LIMIT_BYTES)
    disk = sum(max(min(size, INPUTS_BYTES) - LIMIT_BYTES, 0) for size in (ahead, back))
    disk += max(sum(outputs) - LIMIT_BYTES, 0)
    block = max(sum(sum(sums[group.name]) for group in part) for part in parts.inside(groups))
    peak = max(*forwards, *backwards)
    waits = block + max(inputs), waiting, min(back, LIMIT_BYTES), disk
    return Passes(peak, *waits, not moments, sums, forwards, backwards)


def _streamed_bytes(batch: BatchPeak, parts: Parts, stored: int, embedding: int, narrow: int) -> tuple[int, int]:
    """Return what a batch takes with the weights of a block, and with what is outside the blocks.

    Args:
        batch: beside weights.
        parts: of the model.
        stored: bytes of a parameter that is being read, beside float32.
        embedding: parameters of the embedding, which alone is needed where nothing runs behind the blocks.
        narrow: bytes of a parameter that the backward pass holds beside float32.
    """
    block = (4 + narrow) * parts.block + stored * parts.largest + batch.block
    if not batch.behind:
        return block, (4 + stored) * embedding
    return block, (4 + narrow) * parts.outside + stored * embedding + batch.behind


def _batches(skeleton: Any, method: MatrixCompressor, groups: list[Group], calibration: Calibration) -> list[BatchPeak]:
    """Return what a batch takes in each of the method's passes."""
    gradients, moments = method.requirements.gradients, isinstance(method, MomentCompressor)
    if gradients and not moments:  # of the embedding too, whose gradients are those of its tied head and its lookup
        names = sorted(member.name for g in groups for member in g.members)
    else:
        names = sorted({member.head or member.name for g in groups for member in g.members if g.reader})
    kinds = ([False] if moments or not gradients else []) + ([True] if gradients else [])
    size, length = calibration.batch_size, calibration.length
    # Passes with gradients have all logits. Those of slopes are the policy's own and not of the statistics.
    most = PROBE_BATCH if parse_policy(method.policy).needs_slopes else size
    shapes = {False: (size, length), True: (most_examples(most, length, vocabulary_of(skeleton)), length)}
    return [
        batch_peak(skeleton, names, *shapes[kind], kind, not moments) or guess(skeleton, groups, *shapes[kind], kind)
        for kind in kinds
    ]


def _sums(method: MatrixCompressor, skeleton: Any, groups: list[Group]) -> dict[str, tuple[int, int]]:
    """Return the bytes of each group's sums over inputs and over gradients; an input of several groups counts once."""
    sizes = {group.name: (statistic_bytes(method, group), 0) for group in groups}
    if not isinstance(method, MomentCompressor) or not any(inputs for inputs, _ in sizes.values()):
        return sizes
    first = shared_inputs(skeleton, [group.reader for group in groups if group.reader])
    for group in groups:
        own = min(8 * group.in_features**2, sizes[group.name][0])
        again = first.get(group.reader, group.reader) != group.reader
        sizes[group.name] = (0 if again else own, sizes[group.name][0] - own)
    return sizes


def compress_peak(
    method: MatrixCompressor,
    skeleton: Any,
    layer_by_layer: bool,
    device: str,
    ratios: Sequence[float] = (1.0,),
    calibration: Calibration | None = None,
    kept_parts: Mapping[str, int] | None = None,
) -> Peak:
    """Return the peak of `MatrixCompressor.compress` and of writing its result, on the CPU

        layer by layer  base + largest tensor as stored, in float32 and as written (the bound: 12 bytes a parameter)
                        or largest factors twice
        whole           base + models + max(largest factors twice, checkpoint, what `compress` computes)

    Models are the dense one and its factors. A dense float32 checkpoint is pages of its file, and those of a replaced
    weight are never read unless the method runs the model or copies it for one of several ratios.

    Args:
        method, skeleton, layer_by_layer, device, kept_parts: as in `fit_peak`.
        ratios: that are asked for; models are compressed one after the other.
        calibration: of methods that read data while compressing (`calibration_passes`), else None.
    """
    parts = kept_parts or {}
    factors = 2 * max(factor_bytes(group, parts.get(group.name)) for group in method.groups(skeleton))
    elements, stored = max(parameter.numel() for parameter in skeleton.parameters()), _itemsize(skeleton)
    model = 4 * model_size(skeleton).parameters
    if layer_by_layer:
        # In float32 the tensor is the file's pages all the way; else it is read, widened and written in its own dtype.
        certain = max(factors, elements * (4 if stored == 4 else 4 + 2 * stored))
        bound = BASE_BYTES + max(factors, 3 * 4 * elements)
        return Peak(bound, 0, certain, usual=usual_bytes(device) + certain)
    runs = calibration is not None or method.requirements.searches
    compressed = max(round(model / ratio) for ratio in ratios)
    copies = model if len(ratios) > 1 else 0
    mapped = device == "cpu" and stored == 4  # then the file's pages stay, whatever becomes of the weights
    saved = 0 if mapped else model - compressed
    computed = 0 if calibration is None else _two_streams(method, skeleton, calibration, saved)
    if not mapped:
        resident_bytes = model + copies
    else:
        resident_bytes = (model if runs or copies else 0) + max(compressed, copies)
    least = model if runs or copies or not mapped else compressed
    work = max(factors, computed)
    bound = BASE_BYTES + max(model + max(copies, compressed if mapped else 0) + work, model + _stored(skeleton))
    usual = usual_bytes(device) + max(resident_bytes + work, 0 if mapped else model + _pages(skeleton))
    if device == "cpu":  # without data nothing is computed: tensors go from file to file
        return Peak(bound, 0, least, usual=min(usual, bound))
    return Peak(BASE_BYTES + model + _stored(skeleton), resident_bytes + work, model, usual=usual_bytes(device) + model)


def _two_streams(method: MatrixCompressor, skeleton: Any, calibration: Calibration, saved: float) -> int:
    """Return what `TwoStreams` takes: a dense block, both streams' states, two moments, a pass or a decomposition.

    Training blocks afterwards (``refine_passes``) is not counted.

    Args:
        method, skeleton: as in `fit_peak`.
        calibration: what is read.
        saved: bytes by which the model is smaller at the end; what earlier matrices have saved by then is free again.
    """
    groups, parts = method.groups(skeleton), Parts.of(skeleton)
    [batch] = _batches(skeleton, method, groups, calibration)
    width = int(skeleton.get_input_embeddings().embedding_dim)
    states = 2 * 4 * calibration.samples * calibration.length * width
    given = -(-calibration.samples // calibration.batch_size) * batch.given
    rows = calibration.batch_size * calibration.length
    share = saved / sum(group.out_features * group.in_features for group in groups)
    most = done = 0
    for group in groups:
        if group.embedding:  # its factors are the fit's
            continue
        m, n = group.out_features, group.in_features
        # A batch of both inputs, their difference in float64; the halves of a moment that become a whole one; the
        # matrix, and in float64 what it is moved by, or its decomposition, to which the ridge gives full rank.
        reading = max(batch.block + rows * n * (2 * 4 + 3 * 8), 3 * 8 * n * n)
        moving = 8 * (3 * m * n + 2 * n * n)
        deciding = 4 * m * n + max(moving, regular_bytes(method, m, n))
        most = max(most, 2 * 8 * n * n + max(reading, deciding) - round(share * done))
        done += m * n
    return 4 * parts.block + min(states, LIMIT_BYTES) + given + most


def _pages(skeleton: Any) -> int:
    """Return the bytes of the checkpoint's pages beside its weights in float32, which are the pages in that dtype."""
    return loading_bytes(skeleton, "float32") - 4 * model_size(skeleton).parameters


def _stored(skeleton: Any) -> int:
    """Return the bytes of the checkpoint: while a model is loaded whole, pages of its files are in memory too."""
    return model_size(skeleton).parameters * _itemsize(skeleton)


def _itemsize(skeleton: Any) -> int:
    return DTYPES[own_dtype(skeleton.config)].itemsize
