"""The driver for methods that only say how one matrix, or one group that shares an input, is decomposed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, PrivateAttr, SerializerFunctionWrapHandler, field_validator, model_serializer
from torch import Tensor, nn

from ..foundation.errors import UserError
from ..foundation.memory import trim_memory
from ..foundation.progress import track
from ..models.embedding import LowRankEmbedding
from ..models.layers import LowRankLinear
from ..models.matrices import (
    Matrix,
    get_linear,
    install_embedding,
    low_rank_layers,
    matrices,
    model_size,
    replace_module,
)
from ..models.streamed import DiskWeights, weight_of, weights_of
from .base import CalibrationData, CompressionReport, Compressor, Trainer
from .fitted import Factors, Fitted
from .groups import Group, singles
from .linalg.rows import factor_rows
from .ranks.budget import Allocation, Budget, allocate_by_shapes
from .ranks.policies.base import Loss, Policy, parse_policy
from .ranks.probe import Probe
from .ranks.slopes import fitted_slopes
from .ranks.units import ModelShape
from .requirements import Requirements

_MORE_PARTS = 8
"""That a fit keeps beyond the largest planned rank, at least."""

Statistic = Any
"""What a method gathers for one group: a tensor, or a small dataclass of tensors."""


class MatrixCompressor(Compressor):
    """Goes through the model, decomposes each group of matrices once, turns the budget into ranks, truncates.

    A subclass implements `decompose` and, if it needs data, `collect`; one that shares factors overrides `groups`.

    Args:
        policy: rank policy, by name or as ``name(option=value;…)`` (see ``bench methods --policies``).
        probe_samples: examples on which policies that ask the model's loss ask it.
        embeddings: factorise the token embedding too, and with the same two factors the output head that is tied to it.
    """

    requires: ClassVar[Requirements] = Requirements()

    later_options: ClassVar[frozenset[str]] = frozenset({"embeddings"})
    """Options whose default is off and that no stage's key names then."""

    policy: str = "uniform"
    probe_samples: int = Field(default=64, ge=1)
    embeddings: bool = False
    _ranks: Mapping[str, int] | None = PrivateAttr(default=None)  # in `fit_for`, of the groups that are factorised
    _kept_ranks: Mapping[str, int] = PrivateAttr(default_factory=dict)  # in `fit_to`, parts of the groups that are cut

    @field_validator("policy")
    @classmethod
    def _known_policy(cls, value: str) -> str:
        parse_policy(value)
        return value

    @field_validator("embeddings")
    @classmethod
    def _has_rule(cls, value: bool) -> bool:
        if value and not cls.requires.embeddings:
            raise ValueError(
                f"{cls.name} has no rule for the rows of an embedding; leave the option out, or use a method that has "
                "one, such as svd or svd-llm"
            )
        return value

    @model_serializer(mode="wrap")
    def _without_default(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is off of `later_options`, so that stages of before the options are still these."""
        options: dict[str, Any] = dump(self)
        return {key: value for key, value in options.items() if value or key not in self.later_options}

    def targets(self, model: nn.Module) -> list[Matrix]:
        """Return the matrices that the method may replace."""
        return matrices(model, head=self.head, embeddings=self.embeddings)

    @property
    def requirements(self) -> Requirements:
        """Return what the method needs, and its rank policy: measurements while fitting, the loss while compressing."""
        policy = parse_policy(self.policy)
        return replace(
            self.requires,
            policy=self.policy,
            measures=policy.measures,
            searches=policy.needs_loss,
            gradients=self.requires.gradients or policy.needs_slopes,
        )

    def groups(self, model: nn.Module) -> list[Group]:
        """Return what is decomposed together; by default every matrix alone."""
        return singles(self.targets(model))

    def shape(self, model: nn.Module, ratio: float | None = None) -> ModelShape:
        """Return the groups as units of a budget; a model on the meta device is enough.

        Raises:
            UserError: the policy's options do not fit the model.
        """
        units = tuple(group.unit(self.requires.affine) for group in self.groups(model))
        parse_policy(self.policy).check(units)
        hint = embeddings_hint(self.name) if self.requires.embeddings and not self.embeddings else ""
        return self.shape_at(ModelShape(model_size(model).parameters, units, hint), ratio)

    @abstractmethod
    def decompose(self, weight: torch.Tensor, statistic: Statistic = None, rank: int | None = None) -> Factors:
        """Decompose one weight matrix.

        Args:
            weight: (m, n), the weight of an ``nn.Linear`` as (out, in), or of a group one above the other, float32.
            statistic: what `collect` gave for this group.
            rank: how many parts will be asked for, None for any number; so many are enough, more do no harm.
        """

    def decompose_embedding(self, weight: Tensor, statistic: Statistic = None, rank: int | None = None) -> Factors:
        """Decompose the token embedding E (V, d), float32, for lookup and tied head at once; by default all rows alike.

        Args:
            weight: as (vocabulary, width), which is (out, in) of the tied head.
            statistic: what `collect` gave for it.
            rank: as in `decompose`.
        """
        return factor_rows(weight, rank=rank)

    def collect(
        self, model: nn.Module, data: CalibrationData | None, groups: Sequence[Group]
    ) -> Iterator[tuple[Group, Statistic]]:
        """Yield each group with its statistic, so that no more of them than necessary exist at a time.

        Args:
            model: the dense model.
            data: task data, None for methods that need none.
            groups: what to gather for, in the model's order.
        """
        yield from ((group, None) for group in groups)

    def fit_key(self) -> dict[str, Any]:
        """Return the method's name and the options that the factors depend on."""
        # Ranks are chosen from a fit and leave it as it is, so policies share one; what a policy measures is in it.
        ignored = {"policy", "guard", "probe_samples"}
        key = {"factors": self.name} | {k: v for k, v in self.model_dump(mode="json").items() if k not in ignored}
        if parse_policy(self.policy).measures:
            key |= {"measured": self.policy, "probe_samples": self.probe_samples}
        return key

    def compress_versions(self) -> dict[str, int]:
        """Return the version of the rank policy."""
        policy = parse_policy(self.policy)
        return {policy.name: policy.version} if policy.version > 1 else {}

    def fit(self, model: nn.Module, data: CalibrationData | None, folder: Path | None = None) -> Fitted:
        """Decompose every group of the model, and let the policy measure what it needs.

        Raises:
            UserError: a weight holds a NaN or an infinity.
        """
        for matrix in self.targets(model):
            if not torch.isfinite(weight_of(model, matrix.name)).all():
                raise UserError(
                    f"the weight {matrix.name} holds NaN or infinite entries and cannot be decomposed; the checkpoint "
                    "is damaged or its training diverged, so use another or a lower learning rate"
                )
        groups, fitted = self.groups(model), Fitted(self.fit_key(), folder)
        for group, statistic in track(self.collect(model, data, groups), len(groups), "matrices"):
            if self._ranks is not None and group.name not in self._ranks:
                continue
            rank = None if self._ranks is None else self._ranks[group.name]
            decompose = self.decompose_embedding if group.embedding else self.decompose
            part = decompose(group.weight(model), statistic, rank)
            for key, value in part.tensors().items():
                if not torch.isfinite(value).all():
                    raise ValueError(f"{self.name} gave NaN or infinite factors for {group.name} ({key})")
            fitted.add(group.name, part.first(self._kept_ranks[group.name]) if group.name in self._kept_ranks else part)
            del part, value  # not beside the next matrix
            if weights_of(model) is not None:
                trim_memory()
        policy = parse_policy(self.policy)
        if policy.needs_slopes:
            batches = self._probe(model, fitted, groups, data).batches
            fitted.measured(fitted_slopes(model, groups, fitted, batches))
        elif policy.measures:
            units = self.shape(model).units
            spectra = {unit.name: fitted.spectrum(unit.name) for unit in units}
            fitted.measured(policy.measure(units, spectra, self._loss(model, fitted, groups, data)))
        return fitted

    def fit_for(
        self, budget: Budget, model: nn.Module, data: CalibrationData | None, folder: Path | None = None
    ) -> Fitted:
        """Decompose for one budget: where the policy needs no evidence, only to the ranks that will be kept."""
        policy = parse_policy(self.policy)
        if needs_evidence(policy):
            return self.fit(model, data, folder)
        method = self.model_copy()
        method._ranks = allocate_by_shapes(budget, self.shape(model, budget.ratio), self.policy).ranks
        return method.fit(model, data, folder)

    def kept_ranks(self, model: nn.Module, budgets: Sequence[Budget]) -> dict[str, int] | None:
        """Return the largest ranks of the budgets where the policy needs no evidence, and a few more.

        These are for the rounding of larger ratios, and for readers who ask what the first dropped parts were.

        A unit that stays dense counts with its largest rank below break-even, for a larger ratio factorises it. None
        where ranks depend on spectra, losses or measurements, and for subclasses that compress in their own way.
        """
        policy, cls = parse_policy(self.policy), type(self)
        own = cls.compress is not MatrixCompressor.compress or cls.compress_path is not Compressor.compress_path
        if own or needs_evidence(policy):
            return None
        largest: dict[str, int] = {}
        for budget in budgets:
            shape = self.shape(model, budget.ratio)
            ranks = allocate_by_shapes(budget, shape, self.policy).ranks
            for unit in shape.units:
                rank = ranks.get(unit.name, (unit.parameters - unit.overhead - 1) // unit.cost)
                most = min(max(rank, unit.min_rank) + max(budget.multiple, _MORE_PARTS), unit.max_rank)
                largest[unit.name] = max(largest.get(unit.name, 1), most)
        return largest

    def fit_to(
        self,
        ranks: Mapping[str, int],
        model: nn.Module,
        data: CalibrationData | None,
        folder: Path | None = None,
    ) -> Fitted:
        """Decompose every group, and keep so many parts of each."""
        method = self.model_copy()
        method._kept_ranks = ranks
        return method.fit(model, data, folder)

    def _loss(self, model: nn.Module, fitted: Fitted, groups: Sequence[Group], data: CalibrationData | None) -> Loss:
        return self._probe(model, fitted, groups, data).loss

    def _probe(self, model: nn.Module, fitted: Fitted, groups: Sequence[Group], data: CalibrationData | None) -> Probe:
        if data is None:
            raise UserError(f"the policy '{self.policy}' asks for the model's loss; add --task, such as --task math")
        return Probe(model, groups, fitted, data, self.probe_samples, metric=parse_policy(self.policy).asks())

    def allocation(
        self, model: nn.Module, fitted: Fitted, budget: Budget, data: CalibrationData | None = None
    ) -> Allocation:
        """Return the ranks of one budget under the policy; the model is left as it was."""
        shape, policy = self.shape(model, budget.ratio), parse_policy(self.policy)
        spectra = {unit.name: fitted.spectrum(unit.name) for unit in shape.units} if policy.needs_spectrum else None
        loss = self._loss(model, fitted, self.groups(model), data) if policy.needs_loss else None
        return budget.allocate(shape, policy, spectra, fitted.evidence(), loss)

    def compress(
        self,
        model: nn.Module,
        fitted: Fitted,
        budget: Budget,
        trainer: Trainer | None = None,
        data: CalibrationData | None = None,
    ) -> CompressionReport:
        """Truncate every group to its share of the budget."""
        shape, groups = self.shape(model, budget.ratio), self.groups(model)
        allocation = self.allocation(model, fitted, budget, data)
        for group in track(groups, unit="matrices"):
            if group.name in allocation.ranks:
                rank = allocation.ranks[group.name]
                install(model, group, fitted.factors(group.name), rank)
                if (weights := weights_of(model)) is not None:
                    install_on_disk(weights, group, fitted, rank)
        return report(model, shape, groups, policy=self.policy, level=allocation.level)


def embeddings_hint(method: str) -> str:
    """Return what a sentence about a ratio out of reach adds where the embedding could be factorised and is not."""
    return f", or factorise the token embedding too ({method}:embeddings=true)"


def needs_evidence(policy: Policy) -> bool:
    """Whether ranks depend on more than the budget and the shapes of the units."""
    return policy.needs_spectrum or policy.needs_loss or policy.measures


def cut(group: Group, factors: Factors, rank: int, biases: Sequence[Tensor | None]) -> list[dict[str, Tensor | None]]:
    """Return what `LowRankLinear.from_factors` takes for each member: ``a``, ``b``, ``bias``, ``added_bias``.

    A native bias is kept, or gets the factors' offset added; a layer without one gets the offset as an added bias.
    """
    a, b = factors.truncate(rank)
    offset = factors.offset(rank)
    offsets = [None] * len(group.members) if offset is None else group.split(offset)
    parts = []
    for rows, own, bias in zip(group.split(b), offsets, biases, strict=True):
        added = None
        if own is not None:
            bias, added = (None, own) if bias is None else (bias + own.to(bias), None)
        parts.append({"a": a, "b": rows, "bias": bias, "added_bias": added})
    return parts


def install(model: nn.Module, group: Group, factors: Factors, rank: int) -> None:
    """Replace the layers of a group by factors of one rank, keeping dtype and device; see `cut`."""
    if group.embedding:
        dense_embedding = model.get_submodule(group.name)
        assert isinstance(dense_embedding, nn.Embedding)
        a, b = (factor.to(dense_embedding.weight) for factor in factors.truncate(rank))
        embedding = LowRankEmbedding.from_factors(a, b, dense_embedding)
        install_embedding(model, group.members[0], embedding.train(dense_embedding.training))
        return
    layers = [get_linear(model, matrix.name) for matrix in group.members]
    biases = [None if dense.bias is None else dense.bias.detach() for dense in layers]
    owner: LowRankLinear | None = None
    for matrix, dense, part in zip(group.members, layers, cut(group, factors, rank, biases), strict=True):
        tensors = {key: None if value is None else value.to(dense.weight) for key, value in part.items()}
        # The first member stores the A that the group shares; the others refer to it.
        layer = LowRankLinear.from_factors(**tensors, source=owner)  # type: ignore[arg-type]
        owner = owner or layer
        replace_module(model, matrix.name, layer.train(dense.training))


def install_on_disk(weights: DiskWeights, group: Group, fitted: Fitted, rank: int) -> None:
    """Let the tensors of a group's factorised layers in a streamed model come from the fit, each when it is read."""

    def make(member: int, key: str) -> Tensor:
        names = [f"{matrix.name}.bias" if matrix.bias else "" for matrix in group.members]
        biases = [
            weights.stored(name, replaced=False).float() if name else None for name in names
        ]  # on the CPU, as factors
        value = cut(group, fitted.factors(group.name), rank, biases)[member][key]
        assert value is not None
        return value

    for member, matrix in enumerate(group.members):
        for name, key in {"lr_a": "a", "lr_b": "b", "bias": "bias", "lr_bias": "added_bias"}.items():
            weights.replace(f"{matrix.name}.{name}", partial(make, member, key))


def report(model: nn.Module, shape: ModelShape, groups: Sequence[Group], **details: Any) -> CompressionReport:
    """Count what is in the module tree after compression.

    Args:
        model: the compressed model.
        shape: the shape of the dense model.
        groups: all that could have been factorised.
        details: kept in the report.
    """
    layers = low_rank_layers(model)
    names = [matrix.name for group in groups for matrix in group.members]
    after = model_size(model).parameters
    return CompressionReport(
        ranks={name: layers[name].rank for name in names if name in layers},
        dense={name: "factors would not be smaller at this ratio" for name in names if name not in layers},
        parameters_before=shape.parameters,
        parameters=after,
        matrices_before=shape.parameters - shape.untouched,
        matrices_after=after - shape.untouched,
        details=details,
    )


def by_name(groups: Sequence[Group], statistics: Mapping[str, Statistic]) -> Iterator[tuple[Group, Statistic]]:
    """Pair groups with statistics that are all there already."""
    yield from ((group, statistics[group.name]) for group in groups)
