"""The sequential rank search of SFSD at one tolerance, with every evaluation done once."""

import math
from collections.abc import Mapping, Sequence

from ....foundation.progress import track
from ..units import Unit
from .base import Loss, Metric


class Search:
    """Cuts units one after the other as far as the loss tolerates.

    Args:
        loss: mean loss, or error rate, with some units cut.
        units: in the order in which they are visited.
        metric: what ``loss`` gives; decides the rule.
        evaluations: how often ``loss`` may be asked.
    """

    def __init__(self, loss: Loss, units: Sequence[Unit], metric: Metric, evaluations: int) -> None:
        self.units, self.metric, self.left = units, metric, evaluations
        self._loss = loss
        self._known: dict[tuple[tuple[str, int], ...], float] = {}

    def run(self, tolerance: float, affordable: float | None) -> dict[str, int] | None:
        """Return the ranks found at a tolerance, units that stay dense left out; None when evaluations ran out.

        Args:
            tolerance: δ.
            affordable: parameters for the units; once they are certain to be exceeded, the units not visited yet get
                their least rank without being asked for.
        """
        ranks: dict[str, int] = {}
        dense = self._ask(ranks)
        spent, least = 0, sum(_stored(unit, unit.min_rank) for unit in self.units)
        for number, unit in enumerate(track(self.units, unit="matrices searched"), 1):
            if dense is None:
                return None
            # The loss is the logarithm of the perplexity, of which the limit is dense·(1 + δ)^k.
            limit = dense + (number * math.log1p(tolerance) if self.metric == "loss" else tolerance)
            for rank in grid(unit):
                loss = self._ask(ranks | {unit.name: rank})
                if loss is None:
                    return None
                if loss <= limit:
                    ranks[unit.name] = rank
                    break
            least -= _stored(unit, unit.min_rank)
            spent += _stored(unit, ranks.get(unit.name))
            if affordable is not None and spent + least > affordable:
                return ranks | {unit.name: unit.min_rank for unit in self.units[number:]}
        return ranks

    def fits(self, ranks: Mapping[str, int], affordable: float) -> bool:
        """Whether the units are within the budget at these ranks."""
        return sum(_stored(unit, ranks.get(unit.name)) for unit in self.units) <= affordable * (1 + 1e-12)

    def _ask(self, ranks: Mapping[str, int]) -> float | None:
        key = tuple(sorted(ranks.items()))
        if key not in self._known:
            if self.left == 0:
                return None
            self.left -= 1
            self._known[key] = self._loss(dict(ranks))
        return self._known[key]


def grid(unit: Unit) -> list[int]:
    """Return the ranks that are tried, ascending: the least one, and tenths of κ = parameters / cost below it.

    Where the largest rank is below κ, as in a layer that was pruned already, they are tenths of the largest rank.
    """
    top = min(unit.parameters / unit.cost, unit.max_rank)
    tenths = [int(part * top / 10) for part in range(1, 10)]
    return sorted({unit.min_rank, *(rank for rank in tenths if rank > unit.min_rank and unit.saves(rank))})


def _stored(unit: Unit, rank: int | None) -> int:
    return unit.stored(unit.max_rank if rank is None else rank, guard=True)
