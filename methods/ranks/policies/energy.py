"""Every matrix keeps the same share of the sum of its singular values."""

from bisect import bisect_left
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..units import Unit
from .base import Demand, Policy, policies


@policies.register("energy")
class Energy(Policy):
    """rank = smallest r with s_1 + … + s_r >= level · (s_1 + … + s_k), level common to all matrices.

    Args:
        power: 1 sums s, 2 sums s² (one relative squared error for all matrices).

    The cumulative rule of Basis Selection (authors' code, ``methods/basis_selection.py:select_basis_layer``): the sum
    runs over s, not s².
    """

    power: float = Field(default=1.0, gt=0)

    needs_spectrum: ClassVar[bool] = True

    def demand(self, unit: Unit, spectrum: Tensor | None) -> Demand:
        """Return the rank by the cumulative rule; components below the unit's minimum rank are always wanted."""
        if spectrum is None:
            raise ValueError(f"the energy policy needs the spectrum of {unit.name}")
        fixed = unit.max_rank - len(spectrum)  # ranks that carry no singular value of their own
        # A list: the rank is asked for a hundred times an allocation, and a tensor takes ten times as long to answer.
        sums: list[float] = torch.cumsum(spectrum.double().clamp_min(0) ** self.power, 0).tolist()
        total = sums[-1] if sums else 0.0

        def rank(level: float) -> float:
            if total == 0.0:
                return float(unit.min_rank)
            # 1e-12: where a prefix reaches the share exactly, rounding must not ask for one part more.
            return float(fixed + min(bisect_left(sums, level * total * (1 - 1e-12)) + 1, len(sums)))

        return rank
