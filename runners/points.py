"""At which ratios and bits each method of a sweep is measured: as asked, or solved for a size of the packed weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

from torch import nn

from ..foundation.errors import UserError
from ..methods.base import Compressor
from ..methods.ranks.budget import Budget, allocate_by_shapes
from ..models.dtypes import OWN
from ..models.loading import DTYPES, own_dtype
from ..models.matrices import matrices
from ..models.quantised.scheme import FACTORS
from ..models.quantised.size import dense_bytes, factor_bytes
from .config import SweepConfig

WHOLE_BITS = 16
"""Of ``--bits``: weights as they are saved, without rounding."""

_STEPS = 1e4  # ratios that are solved have so many parts in 1, rounded up: never more bytes than asked for
_MOST = 1e4
_BISECTIONS = 40


@dataclass(frozen=True)
class Point:
    """A ratio and the bits of the weights at it."""

    ratio: float
    bits: int = WHOLE_BITS


class ByteCount:
    """Counts the bytes of a method's packed weights at any ratio, from shapes, with ranks by the uniform policy.

    Other policies spread the same parameters over other ranks, which moves 8-bit factors by their scales alone.

    Args:
        skeleton: the dense model.
        method: with its options.
        width: bytes of a number that is not rounded.
        multiple: of ranks.
    """

    def __init__(self, skeleton: nn.Module, method: Compressor, width: int, multiple: int = 1) -> None:
        self.method, self.width, self.multiple = method, width, multiple
        self._linear, self._shape = matrices(skeleton), replace(method.shape(skeleton), hint="")

    def at(self, ratio: float, bits: int) -> float:
        """Return the bytes at a ratio.

        Raises:
            UserError: the ratio is out of reach.
        """
        shape = self.method.shape_at(self._shape, ratio)
        budget = Budget(ratio, self.method.guard, self.multiple)
        allocation = allocate_by_shapes(budget, shape)
        if bits == WHOLE_BITS:
            return float(allocation.parameters * self.width)
        size, inside = 0.0, 0
        for unit in shape.units:
            inside += unit.parameters
            rank = allocation.ranks.get(unit.name)
            if rank is None:
                # It stays dense, and is rounded as a dense matrix is.
                size += unit.parameters * self._dense_width
            else:
                size += factor_bytes(rank, rank * unit.cost) + unit.overhead * self.width
        beside = max(sum(matrix.parameters for matrix in self._linear) - inside, 0)  # such as a head that stays
        return size + beside * self._dense_width + max(shape.untouched - beside, 0) * self.width

    @cached_property
    def _dense_width(self) -> float:
        """Bytes of an entry of a dense matrix in 8 bits, with its share of the scales."""
        entries = sum(matrix.parameters for matrix in self._linear)
        return sum(dense_bytes(matrix, FACTORS) for matrix in self._linear) / entries

    def ratio_for(self, size: float, bits: int) -> float:
        """Return the least ratio, to four decimals, at which the weights take at most ``size`` bytes.

        Raises:
            UserError: they take less at every ratio, or more at every one; says between which shares of the bfloat16
                model's bytes there is one.
        """
        low, high = 1 + 1 / _STEPS, self._most
        largest, smallest = self.at(low, bits), self.at(high, bits)
        if bits == WHOLE_BITS:  # the bytes of a ratio are known; ranks are whole, so that they are a little fewer
            largest = (self._shape.parameters * self.width) / low
        if not smallest <= size <= largest:
            whole = self._shape.parameters * 2
            raise UserError(
                f"--bytes {size / whole:.6g} is out of reach for {self.method.name} in {bits} bits, which takes "
                f"{_up(smallest / whole) / _STEPS:g} to {_down(largest / whole) / _STEPS:g} of the bfloat16 model's "
                "bytes; ask for a share in between, or for other --bits"
            )
        if bits == WHOLE_BITS:
            ratio = self._shape.parameters * self.width / size
            return min(_up(ratio) / _STEPS, high)
        # Of the two ends the upper one, at which the bytes are known to fit.
        _, high = _bisect(low, high, lambda ratio: self.at(ratio, bits) <= size, _up)
        return min(_up(high) / _STEPS, self._most)

    @cached_property
    def _most(self) -> float:
        """The largest ratio in reach, to four decimals."""

        def is_out_of_reach(ratio: float) -> bool:
            try:
                self.at(ratio, WHOLE_BITS)
            except UserError:
                return True
            return False

        # Beyond this ratio what stays untouched is more than the whole budget.
        high = min(_MOST, self._shape.parameters / max(self._shape.untouched, 1))
        low, _ = _bisect(1 + 1 / _STEPS, high, is_out_of_reach, _down)
        return _down(low) / _STEPS


def _up(ratio: float) -> int:
    return math.ceil(ratio * _STEPS)


def _down(ratio: float) -> int:
    return int(ratio * _STEPS)


def _bisect(
    low: float, high: float, holds: Callable[[float], bool], rounded: Callable[[float], int]
) -> tuple[float, float]:
    """Narrow down from where on a condition holds, until both ends are the same when rounded."""
    for _ in range(_BISECTIONS):
        if rounded(low) == rounded(high):
            break
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return low, high


def points(config: SweepConfig, skeleton: nn.Module, method: Compressor, save_dtype: str) -> tuple[Point, ...]:
    """Return where a method is measured, ratios ascending.

    Args:
        config: of the sweep.
        skeleton: the dense model.
        method: with its options.
        save_dtype: in which its weights are saved, as `models.dtypes.save_dtypes` takes it.

    Raises:
        UserError: a share of bytes that is out of reach.
    """
    if config.bytes is None:
        return tuple(Point(ratio, bits) for ratio in sorted(config.ratios) for bits in config.bits)
    own = own_dtype(cast(Any, skeleton).config)
    width = DTYPES[own if save_dtype == OWN else save_dtype].itemsize
    count = ByteCount(skeleton, method, width, config.rank_multiple)
    whole = 2 * method.shape(skeleton).parameters  # in bfloat16, which --bytes is a share of
    solved = {Point(count.ratio_for(share * whole, bits), bits) for share in config.bytes for bits in config.bits}
    return tuple(sorted(solved, key=lambda point: (point.ratio, point.bits)))
