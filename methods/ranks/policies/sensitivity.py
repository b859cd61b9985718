"""Each matrix is compressed alone at a grid of ratios; the least harmful compressions are taken first (ASVD)."""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ....foundation.progress import track
from ..units import Unit
from ._shares import by_share
from .base import Demand, Evidence, Loss, Policy, policies

_GRID = 0.1  # up to this position all matrices fall from the grid's least share to nothing together


@policies.register("sensitivity")
class Sensitivity(Policy):
    """Sort all (matrix, kept share) by the loss of the model with only that matrix compressed, cut the list somewhere.

    ASVD (arXiv 2312.05821; authors' code ``binary_search.py:binary_search_truncation_rank``): below the cut are the
    compressions that do least harm; every matrix gets the smallest share it has there and stays dense if it has none.
    The cut is where the budget is met. The losses are measured once, while fitting, and serve all ratios;
    that takes units x shares evaluations.

    Differences from the authors' code: it leaves its search with the middle of the last interval and so may miss the
    target by one entry, here the cut meets the budget and what is left is spent on the next entries of the list. The
    authors' grid is 0.4 … 0.9 (``least=0.4``); ours reaches down to 0.1 because ratios of 7 and more have to be met,
    and below the least share all matrices shrink together. Equal losses are ordered by share, so that equal matrices
    stay equal. The loss is that of the task's targets instead of the perplexity of running text. A truncation that
    gives NaN counts as the worst. As there, an untied output head is one of the matrices.

    Args:
        least: smallest kept share that is measured.
        step: distance between the shares.
    """

    measures: ClassVar[bool] = True

    least: float = Field(default=0.1, gt=0, lt=1)
    step: float = Field(default=0.1, gt=0, lt=1)

    def shares(self) -> list[float]:
        """Return the measured kept shares, ascending, all below 1."""
        # 1e-9: a quotient that rounding lifts above a whole number would add the share 1, which is dense.
        number = math.ceil((1 - self.least) / self.step - 1e-9)
        return [self.least + index * self.step for index in range(number)]

    def measure(self, units: Sequence[Unit], spectra: Mapping[str, Tensor], loss: Loss) -> dict[str, Tensor]:
        """Return for each unit the loss at each of the shares, shape (shares,)."""
        measured = {}
        for unit in track(units, unit="matrices measured"):
            ranks = [max(int(share * unit.parameters / unit.cost), unit.min_rank) for share in self.shares()]
            known = {rank: loss({unit.name: rank}) for rank in dict.fromkeys(ranks)}
            measured[unit.name] = torch.tensor([known[rank] for rank in ranks], dtype=torch.float64)
        return measured

    def demands(self, evidence: Evidence) -> list[Demand]:
        """Return kept shares that rise as the cut moves down the list, which is sorted by falling loss."""
        entries = []
        for index, unit in enumerate(evidence.units):
            losses = torch.nan_to_num(evidence.measured[unit.name].double(), nan=math.inf).tolist()
            entries += [(-loss, share, index) for share, loss in zip(self.shares(), losses, strict=True)]
        # The most harmful come first: the cut moves down the list as the level rises, and all behind it are done.
        # A truncation that gave NaN is thus the first to be left out.
        entries.sort()
        own: list[list[tuple[int, float]]] = [[] for _ in evidence.units]
        for level, (_, share, index) in enumerate(entries):
            own[index].append((level, share))
        return [self._demand(unit, part, len(entries)) for unit, part in zip(evidence.units, own, strict=True)]

    def _demand(self, unit: Unit, entries: Sequence[tuple[int, float]], total: int) -> Demand:
        levels = [level for level, _ in entries]
        smallest = [1.0]  # of the entries from each one to the end of the list
        for _, share in reversed(entries):
            smallest.append(min(smallest[-1], share))
        smallest.reverse()

        def share_at(position: float) -> float:
            if position < _GRID:
                return position / _GRID * self.least
            cut = math.floor((position - _GRID) / (1 - _GRID) * total + 1e-9)
            return smallest[bisect_left(levels, cut)]

        return by_share(unit, share_at)
