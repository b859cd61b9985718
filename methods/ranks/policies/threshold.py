"""One threshold on the singular values of all matrices together."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from ..units import Unit
from .base import Demand, Policy, policies


@policies.register("threshold")
class Threshold(Policy):
    """rank = number of singular values at or above one value common to all matrices (Basis Selection, global scope).

    Raw singular values of different layers are comparable only in so far as their inputs have a comparable scale.
    """

    needs_spectrum: ClassVar[bool] = True

    def demand(self, unit: Unit, spectrum: Tensor | None) -> Demand:
        """Return how many components pass; level 0..1 runs over thresholds from very large to zero, exponentially."""
        if spectrum is None:
            raise ValueError(f"the threshold policy needs the spectrum of {unit.name}")
        fixed = unit.max_rank - len(spectrum)
        ascending = spectrum.double().flip(0).cpu().contiguous()

        def rank(level: float) -> float:
            # e^{+20} … e^{-20} covers the singular values of any weight matrix in use; level 1 wants everything.
            if level >= 1.0:
                return float(unit.max_rank)
            limit = math.exp(20.0 - 40.0 * level)
            return float(fixed + len(ascending) - int(torch.searchsorted(ascending, torch.tensor(limit).double())))

        return rank
