"""The driver for methods that only say how one matrix, or one group that shares an input, is decomposed."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, PrivateAttr, field_validator
from torch import Tensor, nn

from ..foundation.errors import UserError
from ..foundation.memory import trim_memory
from ..foundation.progress import track
from ..models.layers import LowRankLinear
from ..models.matrices import get_linear, low_rank_layers, model_size, replace_module
from ..models.streamed import DiskWeights, weight_of, weights_of
from .base import CalibrationData, CompressionReport, Compressor, Trainer
from .fitted import Factors, Fitted
from .groups import Group, singles
from .ranks.budget import Budget
from .ranks.policies.base import Loss, Policy, parse_policy
from .ranks.probe import Probe
from .ranks.units import ModelShape
from .working import svd_bytes

Statistic = Any
"""What a method gathers for one group: a tensor, or a small dataclass of tensors."""


class MatrixCompressor(Compressor):
    """Walks the model, decomposes each group of matrices once, turns the budget into ranks, truncates.

    A subclass implements `decompose` and, if it needs data, `collect`; one that shares factors overrides `groups`.

    Args:
        policy: rank policy, by name or as ``name(option=value;…)`` (see ``bench methods --policies``).
        probe_samples: examples on which policies that ask the model's loss ask it.
    """

    shares: ClassVar[bool] = False
    """Whether several matrices share a factor."""
    walks: ClassVar[bool] = True
    """Whether weights are read through `Group.weight` alone, and statistics come from `moments` and `statistics`, so
    that a streamed model serves as well as one in memory."""

    policy: str = "uniform"
    probe_samples: int = Field(default=64, ge=1)
    _wanted: Mapping[str, int] | None = PrivateAttr(default=None)

    @field_validator("policy")
    @classmethod
    def _known_policy(cls, value: str) -> str:
        parse_policy(value)
        return value

    @property
    def fit_needs_data(self) -> bool:
        """Whether the method's statistics or its policy's measurements read task data."""
        return self.needs_data or parse_policy(self.policy).measures

    @property
    def compress_needs_data(self) -> bool:
        """Whether the policy asks the model's loss while it chooses ranks."""
        return parse_policy(self.policy).needs_loss

    @property
    def fit_walks(self) -> bool:
        """Whether `fit` needs no more than one layer at a time: its policy measures nothing on the model."""
        return self.walks and not parse_policy(self.policy).measures

    @property
    def compress_walks(self) -> bool:
        """Whether `compress` needs no more than one matrix at a time: its policy does not ask the model's loss."""
        return self.walks and not parse_policy(self.policy).needs_loss

    @property
    def backward(self) -> bool:
        """Whether the statistics need gradients."""
        return False

    def working_bytes(self, m: int, n: int) -> int:
        """Return at most how much memory `decompose` takes for an (m, n) matrix beside it and its statistic."""
        return svd_bytes(m, n)

    def statistic_bytes(self, group: Group) -> int:
        """Return the bytes of a group's statistic; vectors count as nothing."""
        return 0

    def groups(self, model: nn.Module) -> list[Group]:
        """Return what is decomposed together; by default every matrix alone."""
        return singles(self.targets(model))

    def shape(self, model: nn.Module, ratio: float | None = None) -> ModelShape:
        """Return the groups as units of a budget; a model on the meta device is enough.

        Raises:
            UserError: the policy's options do not fit the model.
        """
        units = tuple(group.unit(self.affine) for group in self.groups(model))
        parse_policy(self.policy).check(units)
        return ModelShape(model_size(model).parameters, units)

    @abstractmethod
    def decompose(self, weight: torch.Tensor, statistic: Statistic = None) -> Factors:
        """Decompose one weight matrix.

        A method may take a third argument ``rank: int | None = None`` and then give only so many parts, as `linalg.svd`
        does for large matrices; it is passed where one rank alone will be asked for.

        Args:
            weight: (m, n), the weight of an ``nn.Linear`` as (out, in), or of a group one above the other, float32.
            statistic: what `collect` gave for this group.
        """

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
        ignored = {"policy", "guard", "probe_samples"}
        key = {"factors": self.name} | {k: v for k, v in self.model_dump(mode="json").items() if k not in ignored}
        if parse_policy(self.policy).measures:
            key |= {"measured": self.policy, "probe_samples": self.probe_samples}
        return key

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
        cuts = "rank" in inspect.signature(self.decompose).parameters
        for group, statistic in track(self.collect(model, data, groups), len(groups)):
            if self._wanted is not None and group.name not in self._wanted:
                continue
            wanted = {"rank": self._wanted[group.name]} if cuts and self._wanted is not None else {}
            part = self.decompose(group.weight(model), statistic, **wanted)
            for key, value in part.tensors().items():
                if not torch.isfinite(value).all():
                    raise ValueError(f"{self.name} gave NaN or infinite factors for {group.name} ({key})")
            fitted.add(group.name, part)
            if weights_of(model) is not None:
                trim_memory()
        policy = parse_policy(self.policy)
        if policy.measures:
            units = self.shape(model).units
            spectra = {unit.name: fitted.spectrum(unit.name) for unit in units}
            fitted.measured(policy.measure(units, spectra, self._loss(model, fitted, groups, data)))
        return fitted

    def fit_for(
        self, budget: Budget, model: nn.Module, data: CalibrationData | None, folder: Path | None = None
    ) -> Fitted:
        """Decompose for one budget: where the policy needs no evidence, only to the ranks that will be kept."""
        policy = parse_policy(self.policy)
        if policy.needs_spectrum or policy.needs_loss or policy.measures:
            return self.fit(model, data, folder)
        knowing = self.model_copy()
        knowing._wanted = budget.allocate(self.shape(model, budget.ratio), policy).ranks
        return knowing.fit(model, data, folder)

    def _loss(self, model: nn.Module, fitted: Fitted, groups: Sequence[Group], data: CalibrationData | None) -> Loss:
        if data is None:
            raise UserError(f"the policy '{self.policy}' asks for the model's loss; add --task, such as --task math")
        return Probe(model, groups, fitted, data, self.probe_samples, metric=parse_policy(self.policy).asks()).loss

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
        policy: Policy = parse_policy(self.policy)
        spectra = {unit.name: fitted.spectrum(unit.name) for unit in shape.units} if policy.needs_spectrum else None
        loss = self._loss(model, fitted, groups, data) if policy.needs_loss else None
        allocation = budget.allocate(shape, policy, spectra, fitted.evidence(), loss)
        for group in groups:
            if group.name in allocation.ranks:
                rank = allocation.ranks[group.name]
                install(model, group, fitted.factors(group.name), rank)
                if (weights := weights_of(model)) is not None:
                    install_on_disk(weights, group, fitted, rank)
        return report(model, shape, groups, policy=self.policy, level=allocation.level)


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
    """Replace the linear layers of a group by factors of one rank, keeping dtype and device; see `cut`."""
    layers = [get_linear(model, matrix.name) for matrix in group.members]
    biases = [None if dense.bias is None else dense.bias.detach() for dense in layers]
    owner: LowRankLinear | None = None
    for matrix, dense, part in zip(group.members, layers, cut(group, factors, rank, biases), strict=True):
        tensors = {key: None if value is None else value.to(dense.weight) for key, value in part.items()}
        layer = LowRankLinear.from_factors(**tensors, source=owner)  # type: ignore[arg-type]
        owner = owner or layer
        replace_module(model, matrix.name, layer.train(dense.training))


def install_on_disk(weights: DiskWeights, group: Group, fitted: Fitted, rank: int) -> None:
    """Let the tensors of a group's factorised layers in a streamed model come from the fit, each when it is read."""

    def make(place: int, key: str) -> Tensor:
        names = [f"{matrix.name}.bias" if matrix.bias else "" for matrix in group.members]
        biases = [
            weights.stored(name, replaced=False).float() if name else None for name in names
        ]  # on the CPU, as factors
        value = cut(group, fitted.factors(group.name), rank, biases)[place][key]
        assert value is not None
        return value

    for place, matrix in enumerate(group.members):
        for name, key in {"lr_a": "a", "lr_b": "b", "bias": "bias", "lr_bias": "added_bias"}.items():
            weights.replace(f"{matrix.name}.{name}", partial(make, place, key))


def report(model: nn.Module, shape: ModelShape, groups: Sequence[Group], **details: Any) -> CompressionReport:
    """Count what stands in the module tree after compression.

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
