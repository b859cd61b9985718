"""Basis Selection as a method: options, fit, and the training run that prunes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
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
from ...matrixwise import MatrixCompressor, report
from ...ranks.budget import Budget
from ...ranks.policies.base import parse_policy, policies
from ...ranks.units import ModelShape, Unit
from ...shrinking import shrink_parameter
from .fusing import fused
from .layer import BasisLinear, Start
from .pruning import Schedule, lr_factor, pruning_steps
from .run import PruningRun

_USUAL_RATIO = 2.0
_INDEX_BYTES = 64
"""In a checkpoint of a basis: its number, its slot, running means of a criterion."""


@methods.register("bs")
class BasisSelection(Compressor):
    """Gradual selection of singular bases while the model trains on the task.

    The defaults are the paper's (100 prunings, 32 new vectors, 1 + 2 epochs before 3 of recovery, learning-rate
    factors of the authors' run scripts). Two adaptations: the last pruning meets the budget exactly, where the authors
    sweep the kept share by hand; and a narrow matrix gets fewer new vectors (`additional_share`).

    Args:
        start: ``svd`` or another per-matrix method whose factors are the bases.
        prunings: P, how often bases are pruned.
        additional_dimension: r̃, new trained vectors per matrix, at most.
        additional_share: no matrix gets more new vectors than this share of the rank that a uniform allocation would
            give it at the target ratio; the default is the paper's own share, 32 of 257 at Llama-2-7B and 7x.
        new_vectors: ``zero`` starts them as in LoRA (authors), ``top`` from the strongest bases.
        keep_epochs, prune_epochs, post_epochs: how the common budget of steps is divided between training before the
            first pruning, pruning, and the recovery that follows.
        criterion: importance of a basis: ``s`` (authors), ``s2``, ``taylor`` (|s · ∂L/∂s|, running mean), or
            ``hessian`` (the second-order estimate of BSI, see `curvature`).
        schedule: how the kept share falls, ``exponential`` (authors) or ``linear``.
        scope: ``layer`` applies the cumulative rule to each matrix (authors), ``global`` one threshold to all.
        train_others: also train embeddings, norms and biases (authors).
        lr_scaling: ``paper`` applies the authors' factors to the learning rates of pruning and recovery, ``none`` 1.
        split: where the singular values go in the merge: ``first`` (authors) or ``even``.
        trajectory: serve all ratios of a sweep from one pruning run, with a snapshot at each ratio.
        seed: of the new vectors, and of the signs of the ``hessian`` probes.
        final_policy: rank policy of the pruning that meets the budget, such as ``surgical`` for SFSD's search over the
            bases that are left; empty for the rule of ``scope``.
        final_share: share of the way to K (in the schedule's own measure) that is left for a final policy to decide.
        final_samples: examples on which a final policy asks the model's loss.
        hessian_probes: probes before each pruning and at the start; each costs two forward and backward passes over
            8 examples, which the report counts in its details and not in its steps and tokens.
        hessian_samples: examples that the probes take turns on.
        hessian_step, hessian_memory: see `curvature.Curvature`.
        bases_dtype: of the frozen bases while training, ``model`` for the model's own or ``bfloat16`` (authors), which
            halves their memory and leaves its rounding in the compressed model.
        compile: fuse the kernels of every block with torch.compile while bases are trained; the last digits change.
    """

    trains: ClassVar[bool] = True
    needs_data: ClassVar[bool] = True
    default_policy: ClassVar[str] = "energy"

    start: str = "svd"
    prunings: int = Field(default=100, ge=1)
    additional_dimension: int = Field(default=32, ge=0)
    additional_share: float = Field(default=0.125, ge=0, lt=1)
    new_vectors: Start = "zero"
    keep_epochs: float = Field(default=1.0, ge=0)
    prune_epochs: float = Field(default=2.0, gt=0)
    post_epochs: float = Field(default=3.0, ge=0)
    criterion: Literal["s", "s2", "taylor", "hessian"] = "s"
    schedule: Schedule = "exponential"
    scope: Literal["layer", "global"] = "layer"
    train_others: bool = True
    lr_scaling: Literal["paper", "none"] = "paper"
    split: Literal["first", "even"] = "first"
    trajectory: bool = False
    seed: int = 42
    final_policy: str = ""
    final_share: float = Field(default=0.25, ge=0, le=1)
    final_samples: int = Field(default=64, ge=1)
    hessian_probes: int = Field(default=1, ge=1)
    hessian_samples: int = Field(default=64, ge=1)
    hessian_step: float = Field(default=0.01, gt=0, lt=1)
    hessian_memory: float = Field(default=0.9, ge=0, le=1)
    compile: bool = False
    bases_dtype: Literal["model", "bfloat16"] = "model"

    @field_validator("start")
    @classmethod
    def _gives_bases(cls, value: str) -> str:
        start = methods.get(value)
        if not issubclass(start, MatrixCompressor) or start.shares or start.affine:
            raise ValueError(
                "it must be a method that decomposes one matrix at a time and adds no bias, such as 'svd' or 'fwsvd'"
            )
        return value

    @field_validator("final_policy")
    @classmethod
    def _known_policy(cls, value: str) -> str:
        if value:
            parse_policy(value)
        return value

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

    def shape(self, model: nn.Module, ratio: float | None = None) -> ModelShape:
        """Return the units; with a ratio, each one's least rank is its new vectors plus one basis."""
        shape = super().shape(model)
        if self.final_policy:
            parse_policy(self.final_policy).check(shape.units)
        if ratio is None:
            return shape
        return with_extra(shape, self.extra_vectors(shape, Budget(ratio, self.guard)))

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

    def extra_vectors(self, shape: ModelShape, budget: Budget) -> dict[str, int]:
        """Return the number of new vectors of each matrix at a budget, whatever ranks have to be multiples of."""
        uniform = replace(budget, multiple=1).allocate(shape, policies.get("uniform")()).ranks
        return {
            unit.name: min(
                self.additional_dimension, math.floor(self.additional_share * uniform.get(unit.name, unit.max_rank))
            )
            for unit in shape.units
        }


def with_extra(shape: ModelShape, extra: Mapping[str, int]) -> ModelShape:
    """Return the shape with each unit's least rank raised to its new vectors plus one basis."""
    units = tuple(
        Unit(u.name, u.parameters, u.cost, u.max_rank, min(extra[u.name] + 1, u.max_rank), u.overhead)
        for u in shape.units
    )
    return ModelShape(shape.parameters, units)
