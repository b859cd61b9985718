"""Basis Selection as a method: fit, and the training run that prunes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from ....foundation.errors import UserError
from ....models.matrices import get_linear, replace_module
from ...base import (
    TRAINED_BYTES,
    CalibrationData,
    CompressionReport,
    Compressor,
    Trainer,
    TrainingLog,
    create_method,
    methods,
)
from ...fitted import Factors, Fitted
from ...groups import singles
from ...matrixwise import report
from ...ranks.budget import Budget
from ...ranks.policies.base import parse_policy
from ...shrinking import shrink_parameter
from .fusing import fused
from .layer import BasisLinear
from .options import BasisSelectionOptions
from .pruning import lr_factor, pruning_steps
from .run import PruningRun

_USUAL_RATIO = 2.0
_INDEX_BYTES = 64
"""In a checkpoint of a basis: its number, its slot, running means of a criterion."""


@methods.register("bs")
class BasisSelection(BasisSelectionOptions):
    """Gradual selection of singular bases while the model trains on the task.

    The defaults are the paper's (100 prunings, 32 new vectors, 1 + 2 epochs before 3 of recovery, learning-rate
    factors of the authors' run scripts). Two adaptations: the last pruning meets the budget exactly, where the authors
    sweep the kept share by hand; and a narrow matrix gets fewer new vectors (`additional_share`).

    The options are those of `BasisSelectionOptions`.
    """

    trains: ClassVar[bool] = True
    needs_data: ClassVar[bool] = True
    default_policy: ClassVar[str] = "energy"

    def _bases(self) -> Compressor:
        # The start's own policy never chooses a rank here, so it shall not measure either.
        return create_method(self.start, {"head": self.head, "policy": "uniform"})

    @property
    def fit_needs_data(self) -> bool:
        """Whether the method that gives the bases reads task data."""
        return self._bases().fit_needs_data

    @property
    def compress_needs_data(self) -> bool:
        """Whether the criterion or the final policy asks the model."""
        policy = parse_policy(self.final_policy or "uniform")
        return self.criterion == "hessian" or policy.needs_loss or policy.measures

    @property
    def trains_sharded(self) -> bool:
        """Whether a run only trains and prunes: no look at the model on the way, one dtype, nothing compiled."""
        return not (self.trajectory or self.compress_needs_data or self.compile or self.bases_dtype != "model")

    def fitter(self) -> Compressor:
        """Return the method that gives the bases."""
        return self._bases()

    def fit_key(self) -> dict[str, Any]:
        """Share the fit of the method that gives the bases."""
        return self._bases().fit_key()

    def fit(self, model: nn.Module, data: CalibrationData | None, folder: Path | None = None) -> Fitted:
        """Decompose every matrix once, at full rank."""
        return self._bases().fit(model, data, folder)

    def checkpoint_bytes(self, model: nn.Module, budget: Budget, sharded: bool = False) -> int:
        """Return the most bytes of a checkpoint: the bases are the fit's, but shards of them lie there too."""
        shape = super().shape(model)
        extra = self.extra_vectors(shape, budget)
        total = (TRAINED_BYTES if self.train_others else 4) * shape.untouched
        for unit in shape.units:
            trained = unit.max_rank + extra[unit.name] * (unit.cost + 1)
            frozen = unit.max_rank * unit.cost if sharded and self.trains_sharded else 0
            total += TRAINED_BYTES * trained + 4 * frozen + _INDEX_BYTES * unit.max_rank
        return total

    def trained_skeleton(self, model: nn.Module) -> nn.Module:
        """Return a copy with basis layers of full rank, with the new vectors of matrices at half their size."""
        shape = super().shape(model)
        found = copy.deepcopy(model)
        for parameter in found.parameters():
            parameter.requires_grad_(self.train_others)
        narrow = torch.bfloat16 if self.bases_dtype == "bfloat16" else None
        for unit in shape.units:
            dense = get_linear(model, unit.name)
            size: Any = {"device": "meta", "dtype": torch.float32}
            left, right = (
                torch.empty(dense.out_features, unit.max_rank, **size),
                torch.empty(unit.max_rank, dense.in_features, **size),
            )
            factors = Factors(left, right, torch.empty(unit.max_rank, **size))
            extra = min(
                self.additional_dimension, int(self.additional_share * unit.parameters / (_USUAL_RATIO * unit.cost))
            )
            layer = BasisLinear(factors, dense.bias, extra, self.new_vectors, self.seed, torch.float32, narrow)
            replace_module(found, unit.name, layer.to("meta"))
        return found

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
        keep_steps = min(round(steps * self.keep_epochs / before), max(steps - 1, 0))
        due = pruning_steps(keep_steps, steps - keep_steps, self.prunings)
        used = TrainingLog(0, 0, 0.0, 0.0)

        def hand_out(index: int, merged: nn.Module) -> None:
            result = report(merged, run.dense_shape, groups, **run.details(index))
            result.steps, result.tokens = used.steps, used.tokens
            result.tensors = run.bases()
            if self.lr_scaling == "paper":
                result.recover_lr_scale = 1.0 / math.sqrt(run.kept_share[index])
            emit(run.budgets[index], merged, result)

        groups = singles(self.targets(model))
        shrink = trainer.shrink if trainer else shrink_parameter
        run = PruningRun(self, model, fitted, budgets, hand_out, data, shrink)

        def on_gradients(step: int, tokens: int) -> None:
            nonlocal used
            used = TrainingLog(step, tokens, 0.0, 0.0)
            run.observe()
            while run.prunings_done < self.prunings and due[run.prunings_done] <= step:
                run.prune()

        if trainer is not None and steps > 0:
            if trainer.shards:
                if not self.trains_sharded:
                    raise UserError(
                        f"method '{self.name}' with these options needs the whole model while it trains; use DDP, or "
                        "leave out trajectory, compile, bases_dtype, final policies and criteria that ask the model"
                    )
                run.share_bases()
            scale = lr_factor(run.kept_share[-1], max(before, 1.0)) if self.lr_scaling == "paper" else 1.0
            with fused(model) if self.compile else nullcontext():
                used = trainer.train(model, steps, scale, on_gradients, run)
            if trainer.shards:
                found = trainer.whole(model)
                if found is None:
                    return
                run.gathered(found)
                model = found
        while run.prunings_done < self.prunings:
            run.prune()
        hand_out(len(run.budgets) - 1, run.merged(model))
