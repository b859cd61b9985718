"""Ranks from the share of its own parameters that a unit keeps."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from torch import Tensor

from ..units import Unit
from .base import Demand

# Up to this level shares rise to 1 (break-even); the rest of the way leads to full rank, which only budgets without a
# break-even guard ask for.
BREAK_EVEN_LEVEL = 0.999


def dense_rank(unit: Unit) -> int:
    """Return the least rank whose factors are not smaller than the dense matrix: ⌈κ⌉, κ = parameters / cost."""
    return min(math.ceil(unit.parameters / unit.cost - 1e-9), unit.max_rank)


def by_share(unit: Unit, share: Callable[[float], float]) -> Demand:
    """Return the demand of a unit that keeps a share of its own parameters.

    Args:
        unit: the unit.
        share: kept share 0..1 at a position 0..1; must not decrease and must be 1 at 1. A share of 1 means dense.
    """
    even, dense = unit.parameters / unit.cost, dense_rank(unit)

    def rank(level: float) -> float:
        if level >= BREAK_EVEN_LEVEL:
            return dense + (level - BREAK_EVEN_LEVEL) / (1 - BREAK_EVEN_LEVEL) * (unit.max_rank - dense)
        portion = share(level / BREAK_EVEN_LEVEL)
        return float(dense) if portion >= 1 else min(max(portion, 0.0) * even, float(dense))

    return rank


def in_proportion(units: Sequence[Unit], weights: Sequence[float]) -> list[Demand]:
    """Return demands whose kept shares stand in the proportion of the weights until they reach 1.

    share_i = min(1, t·w_i / max w), t = position / (1 - position): half the way up, the heaviest unit becomes dense.

    Args:
        units: n units.
        weights: n numbers above 0.
    """
    largest = max(weights, default=1.0)

    def share(weight: float) -> Callable[[float], float]:
        return lambda position: 1.0 if position >= 1 else min(1.0, position / (1 - position) * weight / largest)

    return [by_share(unit, share(weight)) for unit, weight in zip(units, weights, strict=True)]


def tail_energy(unit: Unit, spectrum: Sequence[float], rank: float) -> float:
    """Return Σ s² beyond a rank, with the fractional part of the rank counted linearly.

    Args:
        unit: the unit; ranks that carry no value of their own (max_rank beyond the spectrum) come first.
        spectrum: (k,) descending.
        rank: 0 .. max_rank.
    """
    components = max(rank - (unit.max_rank - len(spectrum)), 0.0)
    whole = min(int(components), len(spectrum))
    tail = sum(value * value for value in spectrum[whole:])
    return tail - (components - whole) * spectrum[whole] ** 2 if whole < len(spectrum) else 0.0


def values(spectra: Mapping[str, Tensor], unit: Unit, policy: str) -> list[float]:
    """Return a unit's spectrum as plain numbers, negative ones as 0; a `ValueError` names what is missing."""
    if unit.name not in spectra:
        raise ValueError(f"the {policy} policy needs the spectrum of {unit.name}")
    numbers: list[float] = spectra[unit.name].double().clamp_min(0).tolist()
    return numbers


def through(units: Sequence[Unit], ranks_at: Sequence[tuple[float, Mapping[str, int]]]) -> list[Demand]:
    """Return demands that rise from 0 through ranks at given levels, dense where a unit is missing, to full rank."""
    demands = []
    for unit in units:
        dense = dense_rank(unit)
        knots = [(0.0, 0.0)]
        for level, ranks in ranks_at:
            # Searches may find a lower rank at a higher level, and a demand must not fall.
            knots.append((level, max(knots[-1][1], float(ranks.get(unit.name, dense)))))
        demands.append(_line([*knots, (BREAK_EVEN_LEVEL, float(dense)), (1.0, float(unit.max_rank))]))
    return demands


def _line(knots: Sequence[tuple[float, float]]) -> Demand:
    def rank(level: float) -> float:
        for (left, low), (right, high) in pairwise(knots):
            if level < right:
                return low + (high - low) * (level - left) / (right - left)
        return knots[-1][1]

    return rank
