"""All components of all matrices in one pool; those that save the most loss per stored number are kept."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ....foundation.progress import track
from ..units import Unit
from ._shares import tail_energy, values
from .base import Demand, Evidence, Loss, Policy, policies


@policies.register("greedy")
class Greedy(Policy):
    """Keep the components with the highest weight_i·s² / cost_i, weight_i common to a matrix.

    For a loss that is a sum over matrices, Σ weight_i·Σ_dropped s², this is optimal but for the remainder of less than
    one rank: inside a matrix the gains fall, so what is kept of each is a prefix, and no exchange of a kept for a
    dropped component of the same cost lowers the loss. The pool of IO-SVD (arXiv 2605.15626) and of
    variants of ZS-SVD and UniRank. Raw values are comparable between matrices only where the method's metric is one
    for all of them, so the default divides by each matrix's own Σs².

    Equal gains are taken in turns over the matrices, the stronger components first.

    Args:
        normalise: ``none`` weight 1, for spectra in units of the task's loss; ``relative`` weight 1 / Σs²; ``loss``
            weight ΔL / Σ_dropped s², where ΔL is the measured rise of the model's loss with that matrix alone cut to
            ``at`` of its parameters. The last one is ours.
        at: kept share of a matrix at which ``loss`` measures.
    """

    needs_spectrum: ClassVar[bool] = True

    normalise: Literal["none", "relative", "loss"] = "relative"
    at: float = Field(default=0.5, gt=0, lt=1)

    @property
    def measures(self) -> bool:  # type: ignore[override]
        """Whether the model's loss is asked while fitting."""
        return self.normalise == "loss"

    def measure(self, units: Sequence[Unit], spectra: Mapping[str, Tensor], loss: Loss) -> dict[str, Tensor]:
        """Return for each unit the rank that was tried and the rise of the loss, shape (2,); 1 + units evaluations."""
        dense, measured = loss({}), {}
        for unit in track(units, unit="matrices measured"):
            rank = max(int(self.at * unit.parameters / unit.cost), unit.min_rank)
            measured[unit.name] = torch.tensor([float(rank), loss({unit.name: rank}) - dense], dtype=torch.float64)
        return measured

    def demands(self, evidence: Evidence) -> list[Demand]:
        """Return how many of a unit's components are among the best of the pool, a share of the pool = the level."""
        spectra = [values(evidence.spectra, unit, "greedy") for unit in evidence.units]
        weights = self._weights(evidence, spectra)
        pool = [
            (-weight * value * value / unit.cost, component, index)
            for index, (unit, weight, spectrum) in enumerate(zip(evidence.units, weights, spectra, strict=True))
            for component, value in enumerate(spectrum)
        ]
        pool.sort()
        positions: list[list[int]] = [[] for _ in spectra]
        for position, (_, _, index) in enumerate(pool):
            positions[index].append(position + 1)
        return [demand_in_pool(unit, own, len(pool)) for unit, own in zip(evidence.units, positions, strict=True)]

    def _weights(self, evidence: Evidence, spectra: Sequence[list[float]]) -> list[float]:
        if self.normalise == "none":
            return [1.0] * len(spectra)
        if self.normalise == "relative":
            return [1.0 / (sum(value * value for value in spectrum) or 1.0) for spectrum in spectra]
        rises = [float(evidence.measured[unit.name][1]) for unit in evidence.units]
        finite = [rise for rise in rises if rise < float("inf")]
        largest = max(finite, default=0.0)
        # A truncation that breaks the model weighs as much as the worst that does not; one that does no harm, or even
        # helps on these examples, keeps an order among its own components.
        rises = [max(rise if rise < float("inf") else largest, 1e-6 * largest, 1e-12) for rise in rises]
        weights = []
        for unit, spectrum, rise in zip(evidence.units, spectra, rises, strict=True):
            dropped = tail_energy(unit, spectrum, float(evidence.measured[unit.name][0]))
            weights.append(rise / (dropped or sum(value * value for value in spectrum) or 1.0))
        return weights


def demand_in_pool(unit: Unit, positions: Sequence[int], pool: int) -> Demand:
    """Return how many of a unit's components are among the first of a pool, a share of it = the level.

    Args:
        unit: the unit.
        positions: of its components in the pool, from 1, ascending.
        pool: how many components there are.
    """
    fixed = unit.max_rank - len(positions)  # ranks that carry no component of their own
    # 1e-9: level · pool of a whole number of components may round to just below it.
    return lambda level: float(fixed + bisect_right(positions, level * pool + 1e-9))
