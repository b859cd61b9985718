"""Components are dropped so that the changes of the loss that they cause add up to nearly nothing (ZS-SVD)."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import ClassVar

from .base import Demand, Evidence, Policy, policies
from .greedy import demand_in_pool


@policies.register("zero-sum")
class ZeroSum(Policy):
    """Drop next the weakest part of a matrix whose change of the loss is smallest and brings the sum back to zero.

    ZS-SVD (arXiv 2602.02848; authors' code ``planning.py:stage_plan``). Δ_i is the first-order change of the task's
    loss when part i is dropped. Each matrix offers its last remaining part. While the sum of what was dropped is <= 0,
    the smallest Δ >= 0 on offer is dropped, else the smallest |Δ| of the negative ones; where one kind is not on offer,
    the other. The order does not depend on the budget, so that ranks of larger ratios lie within those of smaller
    ones. It does not weigh what dropping saves, as in the authors' code.

    Where the loss is stationary, as after finetuning on the very examples, Δ is noise and so is the order; where it is
    exactly 0 the matrices lose a part each in turn. The authors drop to a quota of ranks and make matrices dense whose
    factors would not be smaller; here both follow from the budget.
    """

    measures: ClassVar[bool] = True
    needs_slopes: ClassVar[bool] = True

    def demands(self, evidence: Evidence) -> list[Demand]:
        """Return how many of a unit's parts are left when a share of all, 1 - level, is dropped."""
        slopes = [evidence.measured[unit.name].double().tolist() for unit in evidence.units]
        # What is dropped last is the first to be kept.
        order = list(reversed(dropping_order(slopes)))
        positions: list[list[int]] = [[] for _ in slopes]
        for position, index in enumerate(order):
            positions[index].append(position + 1)
        return [demand_in_pool(unit, own, len(order)) for unit, own in zip(evidence.units, positions, strict=True)]


def dropping_order(slopes: Sequence[Sequence[float]]) -> list[int]:
    """Return which unit loses its last remaining part at each step, until nothing is left.

    Args:
        slopes: Δ of each unit's parts, strongest part first. NaN counts as harm without limit.
    """
    # By sign of Δ: heaps[False] those >= 0, heaps[True] the negative ones.
    heaps: tuple[list[tuple[float, int, int]], list[tuple[float, int, int]]] = ([], [])
    left = [len(own) for own in slopes]
    order: list[int] = []
    total = 0.0

    def offer(index: int) -> None:
        if left[index]:
            slope = _number(slopes[index][left[index] - 1])
            # Second in the heap's order: of equal Δ the matrix that has lost fewer parts is next, so they take turns.
            dropped = len(slopes[index]) - left[index]
            heapq.heappush(heaps[slope < 0], (abs(slope), dropped, index))

    for index in range(len(slopes)):
        offer(index)
    while any(heaps):
        negative = total > 0
        heap = heaps[negative] or heaps[not negative]
        size, _, index = heapq.heappop(heap)
        total += -size if heap is heaps[True] else size
        left[index] -= 1
        order.append(index)
        offer(index)
    return order


def _number(slope: float) -> float:
    # Finite, because a running sum of inf - inf would be NaN, which is never above 0.
    return 1e300 if math.isnan(slope) else min(max(slope, -1e300), 1e300)
