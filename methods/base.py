"""What a compression method is: a small frozen configuration and two verbs, `fit` and `compress`."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import ConfigDict
from torch import Tensor, nn

from ..foundation.errors import UserError
from ..foundation.strict_numbers import StrictNumbers
from ..models.matrices import Matrix, matrices, model_size
from .configured import create_part
from .fitted import Fitted
from .groups import singles
from .ranks.budget import Budget
from .ranks.units import ModelShape
from .registry import methods
from .requirements import Requirements

__all__ = [
    "CalibrationData",
    "CompressionReport",
    "Compressor",
    "Requirements",
    "Stateful",
    "Trainer",
    "TrainingLog",
    "create_method",
    "methods",
]


class CalibrationData(Protocol):
    """Tokenised task data for statistics."""

    def batches(self, samples: int | None, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Yield ``input_ids``, ``attention_mask``, ``labels`` (b, t), right-padded, labels -100 where no loss counts.

        Args:
            samples: how many examples, or None for all.
            batch_size: examples per batch.
        """


@dataclass(frozen=True)
class TrainingLog:
    """What one training run used: optimizer steps, tokens without padding, seconds, and the loss of its last update.

    Of a run that was cut off and resumed, ``resumed_seconds`` of the seconds were spent before, and
    ``resumed_peak_memory_bytes`` is the most memory that was taken by the time of the checkpoint.
    """

    steps: int
    tokens: int
    seconds: float
    loss: float
    resumed_seconds: float = 0.0
    resumed_peak_memory_bytes: int = 0

    def __add__(self, later: TrainingLog) -> TrainingLog:
        """Return what this run and a later one used together."""
        return TrainingLog(
            self.steps + later.steps,
            self.tokens + later.tokens,
            self.seconds + later.seconds,
            later.loss,
            self.resumed_seconds + later.resumed_seconds,
            max(self.resumed_peak_memory_bytes, later.resumed_peak_memory_bytes),
        )


class NotFinite(UserError):
    """Raised by a method whose trained weights are finite, and a matrix that they make is not.

    Args:
        sentence: which matrix, after how many steps.
        steps, tokens: optimizer steps done, and tokens that they read.
    """

    def __init__(self, sentence: str, steps: int, tokens: int) -> None:
        super().__init__(sentence)
        self.steps, self.tokens = steps, tokens


class Stateful(Protocol):
    """What a training run changes beside the model, for its checkpoints; named as in `torch.distributed.checkpoint`."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, numbers and texts in dicts and lists, the same in all processes that train together."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state, shapes of the model's parameters and buffers included, before their numbers are read.

        Args:
            state: what `state_dict` gave in an earlier process, tensors on the CPU.
        """


class Trainer(Protocol):
    """Trains a model on the task under the sweep's common rules (data, order, optimizer, batch)."""

    total_steps: int
    """Optimizer steps that compress and recover share, so that all methods train equally long."""
    extra_steps: int
    """Optimizer steps that training methods get on top of that for their own use (0 by default)."""

    @property
    def shards(self) -> bool:
        """Whether `train` leaves only a share of every parameter in this process, see `whole`."""

    def train(
        self,
        model: nn.Module,
        steps: int,
        lr_scale: float = 1.0,
        on_gradients: Callable[[int, int], None] | None = None,
        state: Stateful | None = None,
        on_step: Callable[[int, int], None] | None = None,
        min_lr_rate: float = 0.0,
        start: int = 0,
    ) -> TrainingLog:
        """Train in place every parameter that requires a gradient, with one warm-up and decay over ``steps``.

        A run that was cut off may go on from a checkpoint, in a new process that has called this with the same
        arguments and an equal model. It holds the trained parameters and persistent buffers, and ``state``.

        Args:
            model: the model.
            steps: optimizer steps.
            lr_scale: factor on the common learning rate.
            on_gradients: called before each update, gradients in place, with the number of updates done and the tokens
                they used. A run with it and without ``state`` always begins again.
            state: what else the run changes.
            on_step: called before the first forward pass of each update, with the same two numbers; as ``on_gradients``
                otherwise.
            min_lr_rate: where the decay ends, as a share of the peak learning rate.
            start: how many steps of the data's order lie before this run: a run of ``a`` steps and one of ``b`` that
                starts at ``a`` read the very batches of one run of ``a + b`` steps.
        """

    def shrink(self, parameter: nn.Parameter, index: Tensor) -> bool:
        """Keep only some entries of a parameter that trains or is about to, see `shrinking.shrink_parameter`.

        To be called from ``on_gradients``, or when nothing trains. False, with nothing changed, where a parameter
        cannot change its shape, above all because other processes hold parts or copies of it.
        """

    def whole(self, model: nn.Module) -> nn.Module | None:
        """Return the model that was trained last, whole: itself, or if it is sharded another one on the CPU.

        Then all processes call this, and those that do not write results get None.
        """


@dataclass
class CompressionReport:
    """What `compress` did.

    Attributes:
        ranks: rank of each factorised matrix.
        dense: why each of the other matrices stayed dense.
        parameters_before, parameters: whole model, tied tensors once, from the module tree.
        matrices_before, matrices_after: parameters of the compressible matrices alone.
        steps, tokens: optimizer steps and tokens that the method trained with.
        recover_lr_scale: factor that the method wants on the learning rate of the recovery.
        details: plain data worth keeping (thresholds, adapted options).
        tensors: small tensors worth keeping beside the checkpoint, by name (which bases survived; see
            `library.bs.run.PruningRun.bases`).
    """

    ranks: dict[str, int]
    dense: dict[str, str]
    parameters_before: int
    parameters: int
    matrices_before: int
    matrices_after: int
    steps: int = 0
    tokens: int = 0
    recover_lr_scale: float = 1.0
    details: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def summary(self) -> dict[str, Any]:
        """Return all but the tensors as plain data, with both ratios."""
        plain = {f.name: copy.deepcopy(getattr(self, f.name)) for f in fields(self) if f.name != "tensors"}
        return plain | {"ratio": self.ratio, "ratio_matrices": self.ratio_matrices}

    @property
    def ratio(self) -> float:
        """Achieved ratio of the whole model."""
        return self.parameters_before / self.parameters

    @property
    def ratio_matrices(self) -> float:
        """Achieved ratio over the compressible matrices alone."""
        return self.matrices_before / self.matrices_after


class Compressor(StrictNumbers, ABC):
    """A low-rank compression method; its fields are its options.

    Args:
        head: compress an untied output head too, as the Basis Selection authors' code does; a tied one never is.
        guard: keep a matrix dense when factors would not be smaller.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    requires: ClassVar[Requirements] = Requirements(layer_by_layer=False)
    """What the method needs under its default options, see `requirements`."""

    head: bool = True
    guard: bool = True

    @property
    def requirements(self) -> Requirements:
        """Return what the method needs under these options; the one place where an option changes it."""
        return self.requires

    def targets(self, model: nn.Module) -> list[Matrix]:
        """Return the matrices that the method may replace."""
        return matrices(model, head=self.head)

    def shape(self, model: nn.Module, ratio: float | None = None) -> ModelShape:
        """Return what a budget needs to know; a model on the meta device is enough.

        Args:
            model: the dense model.
            ratio: the target, for methods whose smallest rank depends on it.
        """
        units = tuple(group.unit() for group in singles(self.targets(model)))
        return self.shape_at(ModelShape(model_size(model).parameters, units), ratio)

    def shape_at(self, shape: ModelShape, ratio: float | None) -> ModelShape:
        """Return the shape of a model with the smallest ranks that a ratio allows; by default they depend on none."""
        return shape

    @abstractmethod
    def fit_key(self) -> dict[str, Any]:
        """Return the plain data that `fit` depends on; methods with equal keys share one fit."""

    def compress_versions(self) -> dict[str, int]:
        """Return the versions above 1 of the code that `compress` runs beside the fit, by its name.

        Raise one with each change of results, so that stages of an earlier version are not taken for it.
        """
        return {}

    @abstractmethod
    def fit(self, model: nn.Module, data: CalibrationData | None, folder: Path | None = None) -> Fitted:
        """Compute all that does not depend on the ratio; the model is left unchanged.

        Args:
            model: the dense model.
            data: task data, None for methods that need none.
            folder: where factors go as they are made; None keeps all of them in memory.
        """

    def fit_for(
        self, budget: Budget, model: nn.Module, data: CalibrationData | None, folder: Path | None = None
    ) -> Fitted:
        """Compute what `compress` needs for one budget and no other; by default all that `fit` computes.

        Args:
            budget: the only one that the result will be used with.
            model, data, folder: see `fit`.
        """
        return self.fit(model, data, folder)

    def kept_ranks(self, model: nn.Module, budgets: Sequence[Budget]) -> dict[str, int] | None:
        """Return how many parts of each unit `compress` reads at most, by name, for these budgets and smaller models.

        Args:
            model: the dense model; one on the meta device is enough.
            budgets: all that are planned.

        Returns:
            None where all parts may be read, which is the default.
        """
        return None

    def fit_to(
        self,
        ranks: Mapping[str, int],
        model: nn.Module,
        data: CalibrationData | None,
        folder: Path | None = None,
    ) -> Fitted:
        """Do what `fit` does and keep these parts of each unit's factors alone, by default all; spectra stay whole.

        Args:
            ranks: from `kept_ranks`, possibly of several methods with one fit; a unit that is not there is kept whole.
            model, data, folder: see `fit`.
        """
        return self.fit(model, data, folder)

    @abstractmethod
    def compress(
        self,
        model: nn.Module,
        fitted: Fitted,
        budget: Budget,
        trainer: Trainer | None,
        data: CalibrationData | None = None,
    ) -> CompressionReport:
        """Put factorised layers into the model, in place, so that the budget is met within one rank.

        Args:
            model: the dense model.
            fitted: what `fit` gave for it.
            budget: the target.
            trainer: for methods that train.
            data: for methods that search; training data, never the test split.
        """

    def compress_path(
        self,
        model: nn.Module,
        fitted: Fitted,
        budgets: Sequence[Budget],
        trainer: Trainer | None,
        emit: Callable[[Budget, nn.Module, CompressionReport], None],
        data: CalibrationData | None = None,
    ) -> None:
        """Compress to several budgets; methods that can serve them from one run override this.

        Args:
            model: the dense model; used up.
            fitted: what `fit` gave for it.
            budgets: any order.
            trainer: for methods that train.
            emit: called once per budget, from the lowest ratio to the highest, with the compressed model.
            data: for methods that search.
        """
        ordered = sorted(budgets, key=lambda budget: budget.ratio)
        for budget in ordered:
            target = model if budget is ordered[-1] else copy.deepcopy(model)
            emit(budget, target, self.compress(target, fitted, budget, trainer, data))


def create_method(name: str, options: Mapping[str, Any] | None = None) -> Compressor:
    """Build a method from its name and options.

    Raises:
        UserError: unknown method, unknown option or unusable value, with the nearest name or what is allowed.
    """
    method: Compressor = create_part(methods, Compressor, name, options)
    return method
