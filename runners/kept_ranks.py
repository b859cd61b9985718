"""How many parts of its factors each fit of a plan keeps: as many as the ratios of its methods can use."""

from __future__ import annotations

from collections.abc import Mapping

from ..methods.base import Compressor
from ..methods.ranks.budget import Budget
from .graph import Plan
from .specs import FitStage

Ranks = Mapping[str, int]


class KeptRanks:
    """Gathers what the methods of a plan will read of each fit, and writes it into the fit stages.

    Ranks are no part of a stage's key: the parts that are kept are the same numbers whatever else is kept. A later
    sweep with larger ratios reads the same fit; one that needs more ranks makes it again, with the ranks of both
    (`Plan.too_few_ranks`), and what was compressed from it before stays as it is.

    Args:
        plan: of the sweep. With a storage, which other machines read from, fits keep all.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._asked: dict[str, list[Ranks | None]] = {}
        self._by_method: dict[str, Ranks | None] = {}

    def want(self, fit: str, method: Compressor, shown: str) -> None:
        """Note that a method reads a fit.

        Args:
            fit: key of the fit.
            method: with its options.
            shown: name of the method with its options, the same for all seeds.
        """
        if shown not in self._by_method:
            config = self.plan.config
            budgets = [Budget(ratio, method.guard, config.rank_multiple) for ratio in self.plan.ratios(shown)]
            self._by_method[shown] = method.kept_ranks(self.plan.skeleton, budgets)
        self._asked.setdefault(fit, []).append(self._by_method[shown])

    def settle(self) -> None:
        """Give each fit stage the most ranks that a method, or an earlier sweep, wants of it."""
        for key, asked in self._asked.items():
            stage = self.plan.stages[key]
            assert isinstance(stage, FitStage)
            if self.plan.config.execution.storage or stage.spec.budget or None in asked:
                continue
            ranks = [needed for needed in asked if needed is not None]
            if self.plan.store.is_done(key):
                # A finished fit without ranks kept all parts: it covers any ranks, so that it adds nothing here.
                ranks.append(self.plan.store.record(key).execution.ranks or {})
            most = {name: max(needed.get(name, 0) for needed in ranks) for name in ranks[0]}
            execution = stage.execution.model_copy(update={"ranks": most})
            self.plan.stages[key] = stage.model_copy(update={"execution": execution})
