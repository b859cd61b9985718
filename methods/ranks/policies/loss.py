"""Inside each type of matrix, those with the larger truncation loss are compressed less (SVD-LLM V2)."""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

from pydantic import Field

from ..units import Unit
from ._shares import by_share, tail_energy, values
from .base import Demand, Evidence, Policy, policies


@policies.register("loss")
class LossBased(Policy):
    """removed_i = R · w_i / mean(w) inside each type of matrix over all layers, w_i = 1 / ln(L_i + offset).

    SVD-LLM V2 (arXiv 2503.12340). L_i = ‖W_i X - Ŵ_i X‖_F at the ratio R that is removed from all alike; with the
    whitened spectrum of the method that is √Σ_{j>r} s_j². The types are the last parts of the module names. The
    mean of the removed ratios inside a type, weighted by size, is R for every R.

    The code is not released and the printed formula is 1 / ln L, undefined for L <= 1. Chosen here: the offset, which
    keeps the logarithm positive for any L >= 0; and the floor instead of a fixed cap, because at deep ratios the
    formula asks for more than all of a matrix: what the floor gives to some is taken from the others of the type, so
    that the mean stays R. L depends on the scale of the spectrum and so on the number of calibration tokens; the paper
    does not normalise it.

    Args:
        offset: added to L inside the logarithm.
        floor: every matrix keeps at least this share of what the uniform policy would leave it.
    """

    needs_spectrum: ClassVar[bool] = True

    offset: float = Field(default=1.5, gt=1)
    floor: float = Field(default=0.1, ge=0, le=1)

    def demands(self, evidence: Evidence) -> list[Demand]:
        """Return kept shares 1 - removed_i with R = 1 - level."""
        types: dict[str, list[int]] = {}
        for index, unit in enumerate(evidence.units):
            types.setdefault(unit.name.rpartition(".")[2], []).append(index)
        demands: dict[int, Demand] = {}
        for members in types.values():
            units = [evidence.units[index] for index in members]
            weights = [self._weight(unit, evidence) for unit in units]
            removed = self.removed(weights, [unit.parameters for unit in units])
            for number, index in enumerate(members):
                demands[index] = by_share(units[number], _share_left(removed, number))
        return [demands[index] for index in range(len(evidence.units))]

    def _weight(self, unit: Unit, evidence: Evidence) -> float:
        rank = evidence.share * unit.parameters / unit.cost
        spectrum = values(evidence.spectra, unit, "loss")
        return 1.0 / math.log(math.sqrt(tail_energy(unit, spectrum, rank)) + self.offset)

    def removed(self, weights: Sequence[float], sizes: Sequence[int]) -> Callable[[float], list[float]]:
        """Return the removed shares of one type as a function of their mean R.

        removed_i = min(t·w_i, 1 - floor·(1 - R)) with t such that Σ size_i·removed_i = R·Σ size_i.

        Args:
            weights: w_i above 0.
            sizes: parameters.
        """
        # The heaviest reach the cap first. When one stays below it, so do all after it, and they share what is left.
        order = sorted(range(len(weights)), key=lambda index: -weights[index])

        def at(mean: float) -> list[float]:
            cap = 1.0 - self.floor * (1.0 - mean)
            left, mass = mean * sum(sizes), sum(size * w for size, w in zip(sizes, weights, strict=True))
            result = [cap] * len(weights)
            for number, index in enumerate(order):
                scale = left / mass
                if scale * weights[index] <= cap:
                    for other in order[number:]:
                        result[other] = scale * weights[other]
                    break
                left -= cap * sizes[index]
                mass -= sizes[index] * weights[index]
                if mass <= 0:
                    break
            return result

        return at


def _share_left(removed: Callable[[float], list[float]], number: int) -> Callable[[float], float]:
    return lambda position: 1.0 - removed(1.0 - position)[number]
