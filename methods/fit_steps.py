"""What a fit holds at each of its steps, on a CPU: what never is there at the same time is never added up.

Statistics of a block come, its matrices are decomposed one after the other, factors wait until a file is worth it. The
order is that of `MatrixCompressor.fit` and of the statistics' own generators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from ..models.blocks import find_blocks
from ..models.matrices import model_size
from ..models.streamed import NotStreamable
from .calibration.offload_cache import LIMIT_BYTES
from .estimates import decompose_bytes, regular_bytes
from .fitted import BUFFER_BYTES
from .groups import Group
from .matrixwise import MatrixCompressor
from .working import rows_bytes, svd_bytes

_TESTED_BYTES = 7
"""That `torch.isfinite` takes for each entry of a float32 tensor."""


@dataclass(frozen=True)
class Calibration:
    """What is read while fitting: examples, examples per batch, the longest one in tokens, and by autocast or not."""

    samples: int
    batch_size: int
    length: int
    autocast: bool = False


@dataclass(frozen=True)
class Passes:
    """What passes over data take, in bytes.

    Attributes:
        bytes: of a batch, layer by layer with the weights that are loaded for it.
        sums: Gram matrices that are there at a time, at most.
        waiting: hidden states, and sums that wait for their block, in memory.
        back: hidden states that wait for the way back of gradients, in memory; they are gone before the first matrix is
            decomposed.
        disk: the same on disk.
        first: whether all sums are complete before the first matrix is decomposed.
        by_group: layer by layer, the bytes of each group's sums over inputs and over gradients.
        forwards, backwards: layer by layer, what a batch takes in a block and outside the blocks, for inputs and for
            gradients.
    """

    bytes: int = 0
    sums: int = 0
    waiting: int = 0
    back: int = 0
    disk: int = 0
    first: bool = True
    by_group: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    forwards: tuple[int, int] = (0, 0)
    backwards: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Parts:
    """Parameters of the largest block, of its largest tensor and of all outside the blocks, and the blocks' names."""

    names: tuple[str, ...]
    block: int
    outside: int
    largest: int = 0

    @classmethod
    def of(cls, skeleton: nn.Module) -> Parts:
        try:
            blocks = find_blocks(skeleton).names
        except NotStreamable:
            return cls((), 0, model_size(skeleton).parameters)
        sizes = [sum(p.numel() for p in skeleton.get_submodule(name).parameters()) for name in blocks]
        largest = max(p.numel() for name in blocks for p in skeleton.get_submodule(name).parameters())
        return cls(blocks, max(sizes), model_size(skeleton).parameters - sum(sizes), largest)

    def inside(self, groups: list[Group]) -> list[list[Group]]:
        """Return the groups by the block of their first member, those outside the blocks as one."""
        by_block: dict[str, list[Group]] = {}
        for group in groups:
            by_block.setdefault(next((b for b in self.names if group.name.startswith(f"{b}.")), ""), []).append(group)
        return list(by_block.values())

    def number(self, group: Group) -> int:
        """Return the block of a group's input, counted from 0; what is outside the blocks comes after them."""
        return next((i for i, b in enumerate(self.names) if group.reader.startswith(f"{b}.")), len(self.names))


def factor_bytes(group: Group, rank: int | None = None) -> int:
    """Return the bytes of a group's factors of a rank, None for all parts, and of its whole spectrum."""
    m, n = group.out_features, group.in_features
    return 4 * (min(m, n, rank or m) * (m + n) + min(m, n))


def matrix_bytes(method: MatrixCompressor, group: Group, device: str) -> int:
    """Return at most what decomposing a group takes, its weight included; its parts are there until it is stacked."""
    m, n = group.out_features, group.in_features
    working = rows_bytes(m, n) if group.embedding else decompose_bytes(method, m, n)
    if device != "cpu":  # there the eigen form may take more than the LAPACK that a method's own bound is made of
        working = max(working, svd_bytes(m, n, device=device))
    return 4 * m * n + max(4 * m * n, working)


def expected_bytes(method: MatrixCompressor, m: int, n: int, calibration: Calibration) -> int:
    """Return what `decompose` takes: moments of fewer tokens than inputs are singular, others as a rule are not."""
    tokens = calibration.samples * calibration.length
    return regular_bytes(method, m, n) if tokens >= 2 * n else decompose_bytes(method, m, n)


@dataclass(frozen=True)
class Steps:
    """The steps of a fit.

    Attributes:
        method: that fits.
        groups: in the order in which they are decomposed.
        kept_parts: that are kept of each group's factors.
        layer_by_layer: whether weights are read for each matrix.
        itemsize: bytes of a stored parameter.
        calibration: what is read, None for nothing.
        device: torch device.
    """

    method: MatrixCompressor
    groups: Sequence[Group]
    kept_parts: Mapping[str, int]
    layer_by_layer: bool
    itemsize: int
    calibration: Calibration | None
    device: str = "cpu"

    def fullest(self) -> int:
        """Return the most bytes of factors that wait."""
        return max(after for _, _, after in self._waiting_factors())

    def whole(self, passes: Passes) -> int:
        """Return the peak beside base and model, which is in memory."""
        taken = max(before + self._decomposing(group) for group, before, _ in self._waiting_factors())
        taken = max(taken, self.fullest())
        if passes.first:
            return passes.sums + passes.waiting + max(passes.bytes, taken)
        return passes.sums + passes.waiting + max(passes.bytes + self.fullest(), taken)

    def streamed(self, passes: Passes, parts: Parts) -> int:
        """Return the peak beside the base where weights stay on disk.

        Args:
            passes: what they take.
            parts: of the model, whose blocks' sums come one after the other.
        """
        if passes.first:
            steps = self._waiting_factors()
            taken = max([self.fullest(), *(before + self._decomposing(group) for group, before, _ in steps)])
            return passes.sums + passes.waiting + max(passes.bytes + passes.back, taken)
        inputs, outputs = [0] * (len(parts.names) + 1), [0] * (len(parts.names) + 1)
        for group in self.groups:
            own = passes.by_group[group.name]
            inputs[parts.number(group)] += own[0]
            outputs[parts.number(group)] += own[1]
        last = {parts.number(group): group.name for group in self.groups}
        grams = sum(outputs)
        states = passes.waiting - min(grams, LIMIT_BYTES)
        peak = states + passes.forwards[1]  # the embedding
        if grams:  # all gradients, as soon as the inputs of the first block are known
            ready = min(grams - outputs[0], LIMIT_BYTES) + outputs[0]
            back = max(outputs[-1] + passes.backwards[1], ready + passes.backwards[0])
            peak = max(peak, inputs[0] + states + passes.back + back)
        sums = reached = left = 0
        for group, before, after in self._waiting_factors():
            number = parts.number(group)
            for block in range(reached, number + 1):  # an embedding comes first and needs the moments of the head
                sums += inputs[block]
                waiting = states + min(grams, LIMIT_BYTES)
                batch = passes.forwards[block == len(parts.names)]
                peak = max(peak, before + waiting + sums + left + batch)
                left = 0
            reached = max(reached, number + 1)
            own = passes.by_group[group.name]
            grams -= own[1]
            waiting = states + min(grams, LIMIT_BYTES) + own[1] + sums
            peak = max(peak, waiting + max(before + self._decomposing(group), after))
            if last[number] == group.name:
                sums -= inputs[number]
                left = own[0]  # until the next block's are complete
        return peak

    def _waiting_factors(self) -> list[tuple[Group, int, int]]:
        """Return the bytes of factors that wait when a group is decomposed, and when its own have come.

        The buffer is emptied when it holds more than `BUFFER_BYTES`: the largest matrix, which is often the last one,
        seldom meets a full buffer.
        """
        steps, filled = [], 0
        for group in self.groups:
            before = filled
            filled += factor_bytes(group, self.kept_parts.get(group.name))
            whole = factor_bytes(group) if group.name in self.kept_parts else 0  # a copy is made of what is kept
            steps.append((group, before, filled + whole))
            if filled > BUFFER_BYTES:
                filled = 0
        return steps

    def _decomposing(self, group: Group) -> int:
        """Return what decomposing a group takes, beside the model where it is in memory."""
        m, n = group.out_features, group.in_features
        if group.embedding:
            working = rows_bytes(m, n)
        elif self.calibration is None:
            working = decompose_bytes(self.method, m, n)
        else:
            working = expected_bytes(self.method, m, n, self.calibration)
        reading = 0
        if self.layer_by_layer:  # the members as they are, and the one that is being read
            largest = max(matrix.parameters for matrix in group.members)
            reading = 4 * m * n + (self.itemsize * largest if self.itemsize != 4 and len(group.members) > 1 else 0)
        tested = factor_bytes(group) + _TESTED_BYTES * min(m, n) * max(m, n)
        return max(reading + 4 * m * n, 4 * m * n + working, tested)
