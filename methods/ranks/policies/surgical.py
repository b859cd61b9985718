"""Last matrix to first, each takes the smallest rank that the model's loss tolerates (SFSD)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from ..units import Unit
from ._search import Search
from ._shares import through
from .base import Demand, Evidence, Metric, Policy, policies

_BLOCK = re.compile(r"(^|\.)\d+\.")  # the number of a block in a module's name; an output head has none
_TOP = 0.99  # level of the tolerance 0; a tolerance δ has the level 0.99 / (1 + δ)


@policies.register("surgical")
class Surgical(Policy):
    """r_i = smallest rank of {1} ∪ {0.1 … 0.9}·κ_i at which the model, cut so far, stays within the tolerance δ.

    Surgical Feature-Space Decomposition (arXiv 2405.13039; authors' code nyunAI/SFSD-LLM, ``perplexity_test.py``,
    ``surgical.py``). Matrices are visited from the last to the first, the output head and those of the first blocks not
    at all. With ``metric=loss`` the k-th visited one is accepted if perplexity <= dense perplexity · (1 + δ)^k, whether
    or not those before it used theirs; with ``metric=accuracy`` if accuracy >= dense accuracy - δ. If no rank is
    accepted the matrix stays dense.

    The authors' loop is ``reversed(range(len(layers) - 1))`` and its limit 1.005^(224 - index). Their ``layers`` is
    filled by the letters of an option, not by its words, so it holds all 225 linear layers of Llama-7B; what the loop
    leaves out is the output head, and the last matrix of the last block has the exponent 1. Filled by the words, it
    would lack the head: that matrix would be left out, and exponents would begin at 2.

    Adaptations, all ours:

    - The authors choose δ (0.005) and report the size they reach. Here the size is given, so δ is searched:
      geometric bisection for the smallest δ whose ranks meet the budget. What that leaves of the budget moves all
      matrices towards the ranks of the largest δ that was too small. The level of the allocation says which δ it was:
      δ = 0.99 / level - 1. With ``tolerance`` given there is one search at that δ, and its ranks are scaled to the
      budget. A mode that does not meet the ratio does not exist.
    - Loss and accuracy are those of training data of the task (authors: parts of the evaluation data), and
      the accuracy is the share of target tokens that the model would predict (authors: multiple choice). Without
      their chunks of the data, which guard against noise.
    - The output head and the untouched first matrices stay dense as long as they take at most half of what the budget
      affords (the head alone, where both take more); what takes more is visited last, the head after the first matrix.
    - A token embedding (authors: dense) comes before the first matrix, so it is visited after that and before the head.
      It stays dense where it fits into that half beside the other two. Tied to a head, it is the head.
    - Evaluations are cached and bounded; a search that would pass the bound is given up, and the best one so far
      counts. If none is done within the bound, ranks are those of the largest tolerance, which is least rank for all,
      filled up in proportion.

    Args:
        tolerance: fixed δ, or 0 to search for the one that meets the budget.
        untouched: share of the matrices, from the start of the model, that stay dense (authors: 28 of 224).
        metric: ``loss`` or ``accuracy``.
        rounds: bisections of δ between 1e-5 and 1000 (between 1e-5 and 1 for the accuracy).
        evaluations: most evaluations of the model for one ratio.
    """

    needs_loss: ClassVar[bool] = True
    version: ClassVar[int] = 2  # what is no block's matrix: head and embedding apart

    tolerance: float = Field(default=0.0, ge=0)
    untouched: float = Field(default=0.125, ge=0, lt=1)
    metric: Literal["loss", "accuracy"] = "loss"
    rounds: int = Field(default=8, ge=1)
    evaluations: int = Field(default=5000, ge=1)

    def asks(self) -> Metric:
        """Return the metric."""
        return self.metric

    def demands(self, evidence: Evidence) -> list[Demand]:
        """Search, and return demands that pass through the ranks found at the level of their tolerance."""
        if evidence.loss is None:
            raise ValueError("the surgical policy needs the loss of the model")
        affordable = evidence.share * sum(unit.parameters for unit in evidence.units)
        search = Search(evidence.loss, self._visited(evidence, affordable), self.metric, self.evaluations)
        visited = {unit.name for unit in search.units}
        spent = _dense([unit for unit in evidence.units if unit.name not in visited])
        least = {unit.name: unit.min_rank for unit in search.units}
        if self.tolerance:
            tolerated = search.run(self.tolerance, None)
            return through(evidence.units, [(_level(self.tolerance), least if tolerated is None else tolerated)])
        low, high = 1e-5, 1.0 if self.metric == "accuracy" else 1e3
        # `under` met the budget (the least ranks at first), `over` did not; empty, it means all dense, at δ = 0.
        under: Mapping[str, int] = least
        over: Mapping[str, int] = {}
        low_level = _TOP
        for _ in range(self.rounds):
            middle = math.sqrt(low * high)
            ranks = search.run(middle, affordable - spent)
            if ranks is None:
                break
            if search.fits(ranks, affordable - spent):
                high, under = middle, ranks
            else:
                low, over, low_level = middle, ranks, _level(middle)
        return through(evidence.units, [(_level(high), under), (low_level, over)])

    def _visited(self, evidence: Evidence, affordable: float) -> list[Unit]:
        lookups = [unit for unit in evidence.units if unit.lookup]
        units = [unit for unit in evidence.units if not unit.lookup]
        outside = [not _BLOCK.search(unit.name) for unit in units]
        head = units[-1:] if units and outside[-1] and not all(outside) else []
        inside = units[: len(units) - len(head)]
        untouched = inside[: int(self.untouched * len(inside))]
        if _dense([*head, *untouched]) > affordable / 2:
            untouched = []
        visited = list(reversed(inside[len(untouched) :]))
        if _dense([*head, *untouched, *lookups]) > affordable / 2:
            visited += lookups
        return visited + head if _dense(head) > affordable / 2 else visited


def _dense(units: Sequence[Unit]) -> int:
    """Return what units take that stay dense."""
    return sum(unit.stored(unit.max_rank, True) for unit in units)


def _level(tolerance: float) -> float:
    return _TOP / (1 + tolerance)
