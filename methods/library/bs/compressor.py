"""Basis Selection as a method: fit, and the training run that prunes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ....foundation.errors import UserError
from ...base import (
    CalibrationData,
    CompressionReport,
    Compressor,
    Trainer,
    TrainingLog,
    create_method,
    methods,
)
from ...fitted import Fitted
from ...groups import singles
from ...matrixwise import report
from ...ranks.budget import Budget
from ...ranks.policies.base import parse_policy
from ...requirements import Requirements
from ...shrinking import shrink_parameter
from .fusing import fused
from .options import BasisSelectionOptions
from .pruning import lr_factor, pruning_steps, pruning_steps_by_epoch
from .run import PruningRun


@methods.register("bs")
class BasisSelection(BasisSelectionOptions):
    """Gradual selection of singular bases while the model trains on the task.

    The defaults are the paper's (100 prunings, 32 new vectors, 1 + 2 epochs before 3 of recovery, learning-rate
    factors of the authors' run scripts). Two adaptations: the last pruning meets the budget exactly, where the authors
    sweep the kept share by hand; and a narrow matrix gets fewer new vectors (`additional_share`).

    The options are those of `BasisSelectionOptions`.
    """

    requires = Requirements(
        trains=True,
        trains_sharded=True,
        embeddings=True,
        policy="energy",
        ranks="one share of each sum of s",
        paper="arXiv 2405.15877",
        status="measured",
        note="authors' rules and defaults; figures of the paper not reproduced yet",
    )

    def bases(self) -> Compressor:
        """Return the method that gives the bases."""
        # The start's own policy never chooses a rank here, so it must not measure either.
        options: dict[str, Any] = {"head": self.head, "policy": "uniform"}
        return create_method(self.start, options | ({"embeddings": True} if self.embeddings else {}))

    @property
    def requirements(self) -> Requirements:
        """Return what the pruning run needs, and `fit` of the method that gives the bases.

        A run shards where it only trains and prunes: no look at the model on the way, one dtype, nothing compiled, and
        no head that reads the bases of another module.
        """
        start, policy = self.bases().requirements, parse_policy(self.final_policy or "uniform")
        searches = self.criterion == "hessian" or policy.needs_loss or policy.measures
        return replace(
            self.requires,
            statistics=start.statistics,
            gradients=start.gradients,
            layer_by_layer=start.layer_by_layer,
            searches=searches,
            trains_sharded=not (
                self.trajectory or searches or self.compile or self.embeddings or self.bases_dtype != "model"
            ),
        )

    def fit_key(self) -> dict[str, Any]:
        """Share the fit of the method that gives the bases."""
        return self.bases().fit_key()

    def fit(self, model: nn.Module, data: CalibrationData | None, folder: Path | None = None) -> Fitted:
        """Decompose every matrix once, at full rank."""
        return self.bases().fit(model, data, folder)

    def pruning_run_steps(self, trainer: Trainer) -> int:
        """Return the optimizer steps before the merge: a share of the common budget, or the extra ones if given."""
        if trainer.extra_steps:
            return trainer.extra_steps
        before = self.keep_epochs + self.prune_epochs
        return round(trainer.total_steps * before / (before + self.post_epochs))

    def compress(
        self,
        model: nn.Module,
        fitted: Fitted,
        budget: Budget,
        trainer: Trainer | None,
        data: CalibrationData | None = None,
    ) -> CompressionReport:
        """Train, prune and merge down to one ratio; see `compress_path`."""
        reports: list[CompressionReport] = []
        self.compress_path(model, fitted, [budget], trainer, lambda _, __, report: reports.append(report), data)
        return reports[0]

    def compress_path(
        self,
        model: nn.Module,
        fitted: Fitted,
        budgets: Sequence[Budget],
        trainer: Trainer | None,
        emit: Callable[[Budget, nn.Module, CompressionReport], None],
        data: CalibrationData | None = None,
    ) -> None:
        """Prune down to the deepest budget in one run and hand out the merged model at each budget on the way.

        Args:
            model: the dense finetuned model; becomes the model of the deepest budget.
            fitted: what `fit` gave for it.
            budgets: any order.
            trainer: None prunes without training.
            emit: called once per budget, from the lowest ratio to the highest.
            data: for the criterion ``hessian`` and for final policies that ask the model.

        Where the trainer shards the model over processes, it stays so: the main process hands out another one, the
        others hand out nothing.
        """
        steps = self.pruning_run_steps(trainer) if trainer else 0
        before = self.keep_epochs + self.prune_epochs
        # At least one step is left to prune in.
        keep_steps = min(round(steps * self.keep_epochs / before), max(steps - 1, 0))
        spaced = (keep_steps, steps - keep_steps)
        due = pruning_steps(*spaced, self.prunings)
        if self.counting == "epoch" and steps:
            due = pruning_steps_by_epoch(*spaced, self.prune_epochs, self.prunings)

        def hand_out(index: int, merged: nn.Module) -> None:
            result = report(merged, run.dense_shape, groups, **run.details(index))
            result.steps, result.tokens = run.used.steps, run.used.tokens
            result.tensors = run.bases()
            if self.lr_scaling == "paper":
                result.recover_lr_scale = 1.0 / math.sqrt(run.kept_share[index])
            emit(run.budgets[index], merged, result)

        groups = singles(self.targets(model))
        shrink = trainer.shrink if trainer else shrink_parameter
        # As many prunings as are due, which counted by epoch may be more than P (`pruning_steps_by_epoch`).
        run = PruningRun(self, model, fitted, budgets, hand_out, data, shrink, len(due))

        def prune_what_is_due(step: int, tokens: int) -> None:
            run.used = TrainingLog(step, tokens, 0.0, 0.0)
            while run.prunings_done < run.prunings and due[run.prunings_done] <= step:
                run.prune()

        def on_gradients(step: int, tokens: int) -> None:
            run.observe()
            if self.prune_before == "update":
                prune_what_is_due(step, tokens)

        # Only what differs from a trainer's defaults: one of another package may know no more.
        more: dict[str, Any] = {"on_step": prune_what_is_due} if self.prune_before == "forward" else {}
        more |= {"min_lr_rate": self.min_lr_rate} if self.min_lr_rate else {}
        if trainer is not None and steps > 0:
            if trainer.shards:
                if not self.requirements.trains_sharded:
                    raise UserError(
                        f"method '{self.name}' with these options needs the whole model while it trains; use DDP, or "
                        "leave out trajectory, compile, embeddings, bases_dtype, final policies and criteria that ask "
                        "the model"
                    )
                run.share_bases()
            scale = lr_factor(run.kept_share[-1], max(before, 1.0)) if self.lr_scaling == "paper" else 1.0
            with fused(model) if self.compile else nullcontext():
                run.used = trainer.train(model, steps, scale, on_gradients, run, **more)
            if trainer.shards:
                whole_model = trainer.whole(model)
                if whole_model is None:
                    return
                run.gathered(whole_model)
                model = whole_model
        # Without training none has been done yet.
        while run.prunings_done < run.prunings:
            run.prune()
        hand_out(len(run.budgets) - 1, run.merged(model))
