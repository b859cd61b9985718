"""The options of Basis Selection, and what follows from them alone: units of the budget and numbers of new vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from torch import nn

from ....models.matrices import Matrix, matrices
from ...base import Compressor, methods
from ...matrixwise import MatrixCompressor, embeddings_hint
from ...ranks.budget import Budget, allocate_by_shapes
from ...ranks.policies.base import parse_policy
from ...ranks.units import ModelShape
from .layer import Start
from .pruning import Schedule


class BasisSelectionOptions(Compressor):
    """What a pruning run reads of its method.

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
        hessian_step: relative change of the singular values in a probe, see `curvature.Curvature`.
        hessian_memory: weight of earlier probes relative to the newest one, 1 for a plain mean.
        bases_dtype: of the frozen bases while training, ``model`` for the model's own or ``bfloat16`` (authors), which
            halves their memory and leaves its rounding in the compressed model.
        compile: fuse the kernels of every block with torch.compile while bases are trained; the last digits change.
        min_lr_rate: where the cosine ends while bases are pruned, as a share of the peak learning rate (authors: 0.1).
        drop_below: singular values up to this share of a matrix's mean are dropped at the start and at the merge
            (authors: 0.001).
        counting: ``run`` spaces the prunings evenly over all steps of the pruning, ``epoch`` over each epoch as the
            authors do, see `pruning.pruning_steps_by_epoch`.
        prune_before: ``update`` prunes when the gradient of a step is there, ``forward`` before it is computed
            (authors).
        embeddings: give the token embedding bases too, and with the same bases and singular values the output head that
            is tied to it.
        threshold: ``compensated`` for what earlier prunings kept too much of, or ``constant`` K^(1/P) (authors).
    """

    later_options: ClassVar[frozenset[str]] = frozenset(
        ("min_lr_rate", "drop_below", "counting", "prune_before", "threshold", "embeddings")
    )
    """Options left out of the plain data at their default, so that stages of before the options are still these."""

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
    min_lr_rate: float = Field(default=0.0, ge=0, lt=1)
    drop_below: float = Field(default=0.0, ge=0, lt=1)
    counting: Literal["run", "epoch"] = "run"
    prune_before: Literal["update", "forward"] = "update"
    threshold: Literal["compensated", "constant"] = "compensated"
    embeddings: bool = False

    @model_serializer(mode="wrap")
    def _without_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        options: dict[str, Any] = dump(self)
        fields = type(self).model_fields
        return {k: v for k, v in options.items() if k not in self.later_options or v != fields[k].default}

    @model_validator(mode="after")
    def _threshold_of_the_schedule(self) -> Self:
        if self.threshold == "constant" and self.schedule != "exponential":
            raise ValueError(
                "threshold=constant keeps the same share at every pruning, which is the exponential schedule; leave "
                "schedule or threshold out"
            )
        return self

    @field_validator("embeddings")
    @classmethod
    def _start_has_a_rule(cls, value: bool, info: ValidationInfo) -> bool:
        start = info.data.get("start", "svd")  # not there where it is itself refused
        if value and not methods.get(start).requires.embeddings:
            raise ValueError(
                f"start={start} has no rule for the rows of an embedding; leave embeddings out, or start from a method "
                "that has one, such as svd or fwsvd"
            )
        return value

    @field_validator("start")
    @classmethod
    def _gives_bases(cls, value: str) -> str:
        start = methods.get(value)
        if not issubclass(start, MatrixCompressor) or start.requires.shares or start.requires.affine:
            raise ValueError(
                "it must be a method that decomposes one matrix at a time and adds no bias, such as 'svd' or 'fwsvd'"
            )
        return value

    @field_validator("final_policy")
    @classmethod
    def _known_policy(cls, value: str) -> str:
        policy = parse_policy(value or "uniform")
        if policy.needs_slopes or policy.asks() == "divergence":
            raise ValueError(
                f"{value} compares a fit's components with the dense model, which a pruning run does not keep; take "
                "another policy, such as surgical"
            )
        return value

    def targets(self, model: nn.Module) -> list[Matrix]:
        """Return the matrices that get bases."""
        return matrices(model, head=self.head, embeddings=self.embeddings)

    def shape(self, model: nn.Module, ratio: float | None = None) -> ModelShape:
        """Return the matrices as units of a budget, see `shape_at`."""
        shape = super().shape(model)
        if not self.embeddings:
            shape = replace(shape, hint=embeddings_hint(self.name))
        if self.final_policy:
            parse_policy(self.final_policy).check(shape.units)
        return self.shape_at(shape, ratio)

    def shape_at(self, shape: ModelShape, ratio: float | None) -> ModelShape:
        """Return the units; with a ratio, each one's least rank is its new vectors plus one basis."""
        if ratio is None:
            return shape
        return with_extra(shape, self.extra_vectors(shape, Budget(ratio, self.guard)))

    def extra_vectors(self, shape: ModelShape, budget: Budget) -> dict[str, int]:
        """Return the number of new vectors of each matrix at a budget, whatever ranks have to be multiples of."""
        uniform = allocate_by_shapes(replace(budget, multiple=1), shape).ranks
        return {
            unit.name: min(
                self.additional_dimension, math.floor(self.additional_share * uniform.get(unit.name, unit.max_rank))
            )
            for unit in shape.units
        }


def with_extra(shape: ModelShape, extra: Mapping[str, int]) -> ModelShape:
    """Return the shape with each unit's least rank raised to its new vectors plus one basis."""
    units = tuple(replace(unit, min_rank=min(extra[unit.name] + 1, unit.max_rank)) for unit in shape.units)
    return replace(shape, units=units)
