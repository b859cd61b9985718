"""Ranks in the proportion of the square root of a score over the cost of a rank."""

import math
from typing import ClassVar, Literal

from ..units import Unit
from ._shares import in_proportion, tail_energy, values
from .base import Demand, Evidence, Policy, policies

_FLOOR = 1e-6  # of the largest score: a matrix without any content still gets the ranks that nobody else wants


@policies.register("lagrangian")
class Lagrangian(Policy):
    """rank_i = t·√(score_i / cost_i), t common to all: the minimum of Σ score_i / rank_i at a fixed Σ cost_i·rank_i.

    D-Rank (arXiv 2509.25622), known to us from summaries only: the score is the effective rank of the (whitened)
    matrix, a matrix whose content is spread over many components gets more of them. Left open there and chosen here:
    the entropy is that of s_i / Σs (Roy & Vetterli's effective rank); a rank that reaches break-even stays there and
    the rest is shared by the others in the same proportion. Its shift of budget from queries and keys to values is
    not part of this policy.

    Args:
        score: ``effective-rank`` exp(-Σ p ln p), p = s / Σs; ``tail`` the share of Σs² that is lost at the rank of
            the uniform policy.
    """

    needs_spectrum: ClassVar[bool] = True

    score: Literal["effective-rank", "tail"] = "effective-rank"

    def demands(self, evidence: Evidence) -> list[Demand]:
        """Return ranks in the proportion of √(score/cost)."""
        scores = [self._score(unit, values(evidence.spectra, unit, "lagrangian"), evidence) for unit in evidence.units]
        least = _FLOOR * (max(scores, default=1.0) or 1.0)
        # `in_proportion` takes kept shares, which are rank_i · cost_i / parameters_i.
        weights = [
            math.sqrt(max(score, least) / unit.cost) * unit.cost / unit.parameters
            for score, unit in zip(scores, evidence.units, strict=True)
        ]
        return in_proportion(evidence.units, weights)

    def _score(self, unit: Unit, spectrum: list[float], evidence: Evidence) -> float:
        largest = max(spectrum, default=0.0)
        if largest <= 0:
            return 0.0
        spectrum = [value / largest for value in spectrum]  # squares of very small or large values stay in range
        if self.score == "tail":
            rank = evidence.share * unit.parameters / unit.cost
            return tail_energy(unit, spectrum, rank) / tail_energy(unit, spectrum, 0)
        total = sum(spectrum)
        return math.exp(-sum(part * math.log(part) for part in (value / total for value in spectrum) if part > 0))
