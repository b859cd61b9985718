"""When one row is held to be better than another."""

from __future__ import annotations

from ...records.metrics import without_rounding
from ..tables.pivot import Cell, Pivot
from .data import Paired

SIGNIFICANCE = 0.05


def is_separated(test: Paired) -> bool:
    """Return whether a test is held to show that the leader is better."""
    return test.p_corrected < SIGNIFICANCE and test.every_seed


def lies_apart(table: Pivot, best: Cell, other: Cell) -> bool:
    """Return whether the interval of the better cell lies apart from the other's."""
    better, worse = (best.low, other.high) if table.higher_is_better else (-best.high, -other.low)
    return without_rounding(better) > without_rounding(worse)
