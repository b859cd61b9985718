"""A stage before it runs: the typed spec that names it, and where and how this sweep runs it.

The key of a stage is its kind and a hash of its spec: what is done, and the identities of what is read. The `Execution`
beside it (paths, devices, memory) is never part of the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import TypeAdapter, field_serializer, field_validator

from ..evals.base import EvalSettings
from ..foundation.files import digest
from ..methods.calibration.precision import PassDtype
from ..models.quantised.scheme import Correction, Scheme
from .data_spec import DataSpec, Frozen
from .process_setup import ProcessSetup
from .tracking.names import Tracking
from .training.settings import Placement, TrainSettings

FORMAT = 1
"""Raised when a stage's content changes its meaning, so that old folders are not taken for new ones."""

StageKind = Literal["finetune", "fit", "compress", "recover", "quantise", "evaluate"]
KINDS: tuple[StageKind, ...] = get_args(StageKind)
"""In the order in which they can follow each other."""


class ModelInput(Frozen):
    """What a stage reads: the model's sha256, or ``KEY/FOLDER`` of the stage that writes it."""

    model: str


class CompressInputs(ModelInput):
    """As `ModelInput`, and the key of the fit."""

    fit: str


class Spec(Frozen):
    """What enters a stage's key.

    Attributes:
        inputs: identities of what is read.
        environment: variables that change number formats, where some are set.
    """

    kind: StageKind
    inputs: ModelInput
    environment: Mapping[str, str] = {}

    def hashed(self) -> dict[str, Any]:
        """Return the plain data that the key is made of beside kind and inputs.

        Optional fields at their default are left out, so that a new option leaves the keys of earlier stages alone.
        """
        plain = self.model_dump(exclude={"kind", "inputs"})
        return {
            name: plain[name]
            for name, field in type(self).model_fields.items()
            if name in plain and (field.is_required() or plain[name] != field.get_default())
        }


class _MayTrain(Spec):
    # `check_fields=False`: only the subclasses have the field.
    @field_validator("train", check_fields=False)
    @classmethod
    def _without_placement(cls, train: TrainSettings | None) -> TrainSettings | None:
        return None if train is None else train.unplaced()

    @field_serializer("train", check_fields=False)
    def _hashed_train(self, train: TrainSettings | None) -> dict[str, Any] | None:
        return None if train is None else train.hashed()


class TrainedSpec(_MayTrain):
    """A finetuning: of the model before compression, or `RecoverSpec`.

    Attributes:
        train: settings; where weights and moments are kept is part of them only where it changes numbers.
        data: what is trained on.
        save_dtype: of the checkpoint, see `models.dtypes`.
    """

    train: TrainSettings
    data: DataSpec
    seed: int
    save_dtype: str


class FinetuneSpec(TrainedSpec):
    """The finetuning before compression."""

    kind: Literal["finetune"] = "finetune"


class RecoverSpec(TrainedSpec):
    """The finetuning after compression.

    Attributes:
        extra_pruning_steps: whether compression trained beyond the common budget (by how many updates).
        recovery, recovery_options: what is trained, with all options, defaults included.
    """

    kind: Literal["recover"] = "recover"
    extra_pruning_steps: int
    recovery: str = "full"
    recovery_options: Mapping[str, Any] = {}


class FitBudget(Frozen):
    """The only budget that a fit will be used for."""

    ratio: float
    rank_multiple: int


class FitSpec(Spec):
    """What a method computes once for all ratios.

    Attributes:
        fit: `Compressor.fit_key`: the method's options that the fit depends on.
        data, seed: for methods that read data.
        budget: where no other ratio will read the fit, so that less can be computed.
        calibration_dtype: of the products in the passes that statistics are gathered from (`calibration.precision`).
    """

    kind: Literal["fit"] = "fit"
    fit: dict[str, Any]
    data: DataSpec | None = None
    seed: int | None = None
    budget: FitBudget | None = None
    calibration_dtype: PassDtype = "float32"


class CompressSpec(_MayTrain):
    """A compression to one ratio, or to several along one trajectory.

    Attributes:
        options: all of the method's, defaults included.
        ratios: targets, ascending.
        save_dtype: of the checkpoint, see `models.dtypes`.
        train, data, extra_pruning_steps: for methods that train while they compress; ``data`` for those that read some.
        versions: `Compressor.compress_versions`.
    """

    kind: Literal["compress"] = "compress"
    inputs: CompressInputs
    method: str
    options: dict[str, Any]
    ratios: tuple[float, ...]
    save_dtype: str
    seed: int
    rank_multiple: int = 1
    train: TrainSettings | None = None
    data: DataSpec | None = None
    extra_pruning_steps: int | None = None
    versions: Mapping[str, int] = {}


class QuantiseSpec(Spec):
    """Rounding the weights of a checkpoint after all training.

    Attributes:
        scheme: what is rounded to how many bits.
        save_dtype: of the dequantised checkpoint and of what is not rounded, see `models.dtypes`.
        correction: a low-rank matrix beside each rounded one.
        data, seed, calibration_dtype: of a whitened correction, as in `FitSpec`.
    """

    kind: Literal["quantise"] = "quantise"
    scheme: Scheme
    save_dtype: str
    correction: Correction | None = None
    data: DataSpec | None = None
    seed: int | None = None
    calibration_dtype: PassDtype = "float32"


class EvaluateSpec(Spec):
    """An evaluation of one checkpoint on one benchmark.

    Attributes:
        benchmark: registered name.
        variant: full name, as in records.
        identity: `Benchmark.identity`: data, prompts, rules and limits.
        engine: name of the engine.
        dtype: of its arithmetic.
    """

    kind: Literal["evaluate"] = "evaluate"
    benchmark: str
    variant: str
    identity: dict[str, Any]
    engine: str
    dtype: str


class ModelLocation(Frozen):
    """Where a model lies: a folder or hub id, and the revision of a hub model."""

    location: str
    revision: str = ""


class ChosenPlacement(Frozen):
    """Where a training keeps weights, gradients and moments, and why."""

    placement: Placement
    why: str


class Execution(Frozen):
    """Where and how a stage runs; no part of its key.

    Attributes:
        model: what is read.
        device: torch device.
        data: folder with local datasets, None for the hub.
        train_set: training set by name, None for the task's default.
        task: of the sweep; ``train_set`` is one of this task's.
        task_file: the user's task file as JSON with absolute paths, where the task comes from one; any process can
            make the task of it again, whatever became of the file.
    """

    model: ModelLocation
    device: str = "cpu"
    data: Path | None = None
    train_set: str | None = None
    task: str | None = None
    task_file: str | None = None

    def stored(self) -> dict[str, Any]:
        """Return plain data for the stage's record."""
        plain = self.model_dump(mode="json")
        return {name: value for name, value in plain.items() if value is not None or name in ("data", "train_set")}


class TrainingExecution(Execution):
    """As `Execution`, for trainings.

    Attributes:
        checkpoint_minutes: least time between two checkpoints to resume from.
        accelerate: processes that train together.
        placement: where it was chosen.
        load_device: where the weights are loaded instead of ``device``, before accelerate moves each process's share.
        tracking: where curves are reported to; None reports to nobody.
    """

    checkpoint_minutes: float | None = None
    accelerate: ProcessSetup | None = None
    placement: ChosenPlacement | None = None
    load_device: str | None = None
    tracking: Tracking | None = None


class FitExecution(Execution):
    """As `Execution`, for fits.

    Attributes:
        memory: how the model is loaded, see `SweepConfig.memory`.
        method, options: what fits; options that the fit does not depend on are no part of its key.
        ranks: parts that are kept of each unit's factors, by name; None for all (`kept_ranks`).
        calibration_why: why the passes do not compute in float32, None where they do or where that was asked for.
    """

    memory: str = "auto"
    method: str
    options: dict[str, Any]
    ranks: dict[str, int] | None = None
    calibration_why: str | None = None


class CompressExecution(TrainingExecution):
    """As `TrainingExecution`, for compressions.

    Attributes:
        memory: how the model is loaded, see `SweepConfig.memory`.
        fit: folder of the fit.
    """

    memory: str = "auto"
    fit: Path


class EvaluateExecution(Execution):
    """As `Execution`, for evaluations.

    The settings' data folder is ``data``; ``dtype_why`` says why the dtype is not the default, None where it is.
    """

    settings: EvalSettings
    dtype_why: str | None = None


class Stage(Frozen):
    """One step of the protocol before it runs; a subclass for each kind narrows both parts.

    Attributes:
        spec: decides the result, and is the key.
        execution: decides only how it runs.
        title: for people.
    """

    spec: Spec
    execution: Execution
    title: str = ""

    @property
    def kind(self) -> StageKind:
        """``finetune``, ``fit``, ``compress``, ``recover``, ``quantise`` or ``evaluate``."""
        return self.spec.kind

    @property
    def inputs(self) -> dict[str, str]:
        """Keys of the stages, or hashes of the models, that are read, by role."""
        return self.spec.inputs.model_dump()

    @property
    def key(self) -> str:
        """Name of the stage's folder."""
        identity = {"format": FORMAT, "kind": self.kind, "config": self.spec.hashed(), "inputs": self.inputs}
        return f"{self.kind}-{digest(identity)[:16]}"

    @property
    def shown(self) -> str:
        """The title, or the key where there is none."""
        return self.title or self.key

    @property
    def train(self) -> TrainSettings | None:
        """Settings of the training that this stage does, None where it does none."""
        return getattr(self.spec, "train", None)

    @property
    def data(self) -> DataSpec | None:
        """The task data that this stage reads, None where it reads none."""
        return getattr(self.spec, "data", None)

    @property
    def accelerate(self) -> ProcessSetup | None:
        """The processes that train together, None for one."""
        return getattr(self.execution, "accelerate", None)

    @property
    def placement(self) -> ChosenPlacement | None:
        """Where the training keeps what belongs to its weights, None where nothing was chosen."""
        return getattr(self.execution, "placement", None)

    def location_of(self, role: str) -> Path:
        """Return where what a stage reads lies.

        Args:
            role: ``model`` or ``fit``, as in ``inputs``.
        """
        return Path(getattr(self.execution, "fit", "") if role == "fit" else self.execution.model.location)

    def located(self, model: ModelLocation | None = None, fit: Path | None = None) -> Stage:
        """Return the stage with other locations of what it reads; its key stays."""
        moved = {name: location for name, location in {"model": model, "fit": fit}.items() if location is not None}
        return self.model_copy(update={"execution": self.execution.model_copy(update=moved)})


class FinetuneStage(Stage):
    """See `FinetuneSpec`."""

    spec: FinetuneSpec
    execution: TrainingExecution


class FitStage(Stage):
    """See `FitSpec`."""

    spec: FitSpec
    execution: FitExecution


class CompressStage(Stage):
    """See `CompressSpec`."""

    spec: CompressSpec
    execution: CompressExecution


class RecoverStage(Stage):
    """See `RecoverSpec`."""

    spec: RecoverSpec
    execution: TrainingExecution


class QuantiseStage(Stage):
    """See `QuantiseSpec`."""

    spec: QuantiseSpec
    execution: Execution


class EvaluateStage(Stage):
    """See `EvaluateSpec`."""

    spec: EvaluateSpec
    execution: EvaluateExecution

    @property
    def settings(self) -> EvalSettings:
        """How to evaluate, with the data folder."""
        return replace(self.execution.settings, data_dir=self.execution.data)


TrainingStage = FinetuneStage | CompressStage | RecoverStage
"""The kinds that may train."""

# The union, for the fields of `Stage` have the base types; the literal `kind` of a spec fits one member alone.
_ANY: TypeAdapter[Stage] = TypeAdapter(
    FinetuneStage | FitStage | CompressStage | RecoverStage | QuantiseStage | EvaluateStage
)


def parse_stage(text: str) -> Stage:
    """Return the stage that ``model_dump_json`` wrote."""
    return _ANY.validate_json(text)
