"""Few matrices truncated strongly, in the order of the loss that each causes alone.

LASER (arXiv 2312.13558) truncates single matrices to a small share ρ of their rank and composes several. The
budget-exact form is ours: matrices are cut to ρ·min(m, n) in a fixed order until the budget is met, the last one only
as far as needed. A budget below that of all matrices cut shrinks all of them further, in proportion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ....foundation.progress import track
from ..units import Unit
from .base import Demand, Evidence, Loss, Policy, policies

_ALL_CUT = 0.1  # the level at which all matrices are cut; below it they fall together to nothing


@policies.register("laser")
class Laser(Policy):
    """Cut the matrix whose truncation hurts least first.

    Args:
        rho: share of the rank that a cut matrix keeps.
        per_parameter: order by loss per saved parameter rather than by loss.
    """

    measures: ClassVar[bool] = True
    version: ClassVar[int] = 2  # budgets below that of all matrices cut

    rho: float = Field(default=0.1, gt=0, lt=1)
    per_parameter: bool = True

    def cut(self, unit: Unit) -> int:
        """Return the rank of a cut unit."""
        return max(math.ceil(self.rho * unit.max_rank), unit.min_rank)

    def measure(self, units: Sequence[Unit], spectra: Mapping[str, Tensor], loss: Loss) -> dict[str, Tensor]:
        """Return the loss with each unit cut alone, minus that of the dense model, shape (units,)."""
        dense, counted = loss({}), track(units, unit="matrices measured")
        return {"laser": torch.tensor([loss({unit.name: self.cut(unit)}) - dense for unit in counted])}

    def demands(self, evidence: Evidence) -> list[Demand]:
        """Return demands that fall to the cut rank one unit after the other, then together, as the level falls."""
        harm = evidence.measured["laser"].double()
        if self.per_parameter:
            saved = [max(unit.parameters - unit.factorised(self.cut(unit)), 1) for unit in evidence.units]
            # A truncation that helps comes first, however little it saves.
            harm = torch.where(harm > 0, harm / torch.tensor(saved, dtype=torch.float64), harm)
        number = len(evidence.units)
        # The least harmful is cut at the highest levels: number 0 moves between the last two of `steps`.
        steps = [_ALL_CUT + (1 - _ALL_CUT) * index / number for index in range(number)] + [1.0]
        position = {index: rank for rank, index in enumerate(torch.argsort(harm, stable=True).tolist())}

        def demand(unit: Unit, order: int) -> Demand:
            low, even = self.cut(unit), min(unit.parameters / unit.cost, unit.max_rank)
            start, end = steps[number - 1 - order], steps[number - order]

            def rank(level: float) -> float:
                if level >= end:  # compared as it is: the share of the step can round to less than 1 there
                    return float(unit.max_rank)
                if level < _ALL_CUT:
                    return low * level / _ALL_CUT
                return low + max(level - start, 0.0) / (end - start) * max(even - low, 0.0)

            return rank

        return [demand(unit, position[index]) for index, unit in enumerate(evidence.units)]
