"""What a finished stage left: its ``stage.json`` as a typed record, one model for each kind.

`StageStore.record` is the place that reads them. Fields that this version does not know are left out, so that runs of
earlier versions stay readable; only a record of a later version is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, TypeAdapter, ValidationError, field_validator

from ..evals.base import Metric, metric_from_plain
from ..foundation.errors import UserError
from .specs import CompressSpec, EvaluateSpec, FinetuneSpec, FitSpec, ModelLocation, QuantiseSpec, RecoverSpec, Spec
from .store.files import RECORD, damaged

VERSION = 1
"""Of ``stage.json``; raised when its fields change their meaning. Records without one are of version 1."""


class _Lenient(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Hardware(_Lenient):
    """What a stage ran on: the processor's name, its cores and CPU threads, the names of all GPUs, and the system."""

    cpu: str
    cores: int | None = None
    threads: int
    gpus: tuple[str, ...] = ()
    system: str = ""


class Provenance(_Lenient):
    """Versions of the libraries by name, commit of the package (empty outside a checkout), and machine."""

    versions: dict[str, str]
    git_commit: str
    hardware: Hardware


class RecordedExecution(_Lenient):
    """Where a stage ran: torch device, where its model lay, folder with local datasets, and the task file's text."""

    device: str
    model: ModelLocation
    data: Path | None = None
    task_file: str | None = None


class RecordedTraining(_Lenient):
    """What a training used: optimizer steps, and tokens without padding."""

    steps: int
    tokens: int


class RecordedReport(_Lenient):
    """What a method reported of one ratio; see `methods.base.CompressionReport`."""

    parameters: int
    ratio_matrices: float
    ranks: dict[str, int] = Field(default_factory=dict)
    dense: dict[str, str] = Field(default_factory=dict)
    steps: int = 0
    tokens: int = 0


class DataCard(_Lenient):
    """What was in the training data of a task file: rows, and tokens by ``min``, ``50%`` and other quantiles."""

    rows: int
    used: int
    held_out: int = 0
    empty: int = 0
    dropped_too_long: int = 0
    cut_to_length: int = 0
    tokens: dict[str, float] = Field(default_factory=dict)


class HeldOut(_Lenient):
    """Of a recovery in a tuned sweep: mean loss in nats a token on held-out training examples, and what was read.

    The loss is None where it was not finite.
    """

    loss: float | None
    examples: int
    tokens: int


class TrainingResult(_Lenient):
    """Of a finetuning or a recovery; ``diverged`` says why a learning rate of a tuned sweep left no model."""

    training: RecordedTraining
    diverged: str = ""
    held_out: HeldOut | None = None
    warnings: tuple[str, ...] = ()
    data_card: DataCard | None = None


class FitResult(_Lenient):
    """Of a fit.

    Attributes:
        warnings: what a reader of the result should know.
        calibration: what was read, ``examples``, ``tokens`` and the longest example's ``length``; empty without data.
        added_jitter: what was added to the diagonals of moments that had no Cholesky factor, by matrix or group.
        memory: plain data of how the model was held, and what that was estimated to need.
    """

    warnings: tuple[str, ...] = ()
    calibration: dict[str, int] = Field(default_factory=dict)
    added_jitter: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    memory: dict[str, Any] = Field(default_factory=dict)


class CompressResult(_Lenient):
    """Of a compression: reports by ratio, as ``f"{ratio:g}"`` writes it; calibration and memory as of a fit.

    ``training`` and ``diverged`` are as of a recovery, for methods that train.
    """

    reports: dict[str, RecordedReport]
    training: RecordedTraining | None = None
    diverged: str = ""
    calibration: dict[str, int] = Field(default_factory=dict)
    memory: dict[str, Any] = Field(default_factory=dict)

    def report(self, ratio: float) -> RecordedReport:
        """Return the report of one of the stage's ratios."""
        return self.reports[f"{ratio:g}"]

    def has_report(self, ratio: float) -> bool:
        """Whether this is one of the stage's ratios."""
        return f"{ratio:g}" in self.reports


class QuantiseResult(_Lenient):
    """Of rounding weights: bytes of the packed file."""

    packed_bytes: int
    warnings: tuple[str, ...] = ()


class EvaluateResult(_Lenient):
    """Of an evaluation.

    Attributes:
        details: plain data of the benchmark's, such as the isolation of executed code.
        variant: full name of the benchmark, where the evaluation settled it.
        bytes: size of the evaluated checkpoint's weights; of a quantised one they are dequantised.
    """

    metrics: tuple[Metric, ...]
    dataset_sha256: str
    prompt_sha256: str
    details: dict[str, Any]
    variant: str = ""
    bytes: int

    @field_validator("metrics", mode="before")
    @classmethod
    def _from_plain(cls, metrics: Any) -> Any:
        return tuple(metric_from_plain(metric) for metric in metrics)


class _Record(_Lenient):
    """What all kinds have in common.

    Attributes:
        spec: what was done; see `specs`.
        execution: where.
        seconds: it took, earlier attempts of a resumed training included.
        cpu_seconds: of all threads of the process and of its engine's processes, without those that train together and
            without earlier attempts; 0 in records of earlier versions.
        started_at, ended_at: ISO 8601.
        peak_memory_bytes: of the process, or of a larger one that it started.
    """

    version: int = VERSION
    key: str
    title: str
    spec: Spec
    execution: RecordedExecution = Field(alias="runtime")
    seconds: float
    cpu_seconds: float = 0.0
    started_at: str
    ended_at: str
    peak_memory_bytes: int
    provenance: Provenance


class FinetuneRecord(_Record):
    """Of a finetuning before compression."""

    kind: Literal["finetune"]
    spec: FinetuneSpec
    result: TrainingResult


class FitRecord(_Record):
    """Of a fit."""

    kind: Literal["fit"]
    spec: FitSpec
    result: FitResult


class CompressRecord(_Record):
    """Of a compression."""

    kind: Literal["compress"]
    spec: CompressSpec
    result: CompressResult


class RecoverRecord(_Record):
    """Of a finetuning after compression."""

    kind: Literal["recover"]
    spec: RecoverSpec
    result: TrainingResult


class QuantiseRecord(_Record):
    """Of rounding weights."""

    kind: Literal["quantise"]
    spec: QuantiseSpec
    result: QuantiseResult


class EvaluateRecord(_Record):
    """Of an evaluation."""

    kind: Literal["evaluate"]
    spec: EvaluateSpec
    result: EvaluateResult


StageRecord = FinetuneRecord | FitRecord | CompressRecord | RecoverRecord | QuantiseRecord | EvaluateRecord
"""Any of them; ``kind`` tells which."""

_ANY: TypeAdapter[StageRecord] = TypeAdapter(Annotated[StageRecord, Discriminator("kind")])
_SPECS: dict[str, type[Spec]] = {
    "finetune": FinetuneSpec,
    "fit": FitSpec,
    "compress": CompressSpec,
    "recover": RecoverSpec,
    "quantise": QuantiseSpec,
    "evaluate": EvaluateSpec,
}
_NOUNS = {"finetune": "a finetuning", "fit": "a fit", "compress": "a compression", "recover": "a recovery"}
_NOUNS |= {"quantise": "a rounding of weights"}


def parse_record(plain: Mapping[str, Any], folder: Path) -> StageRecord:
    """Return the typed record of a stage.

    Args:
        plain: of ``stage.json``, after `read_record` has checked it.
        folder: of the stage, for messages.

    Raises:
        UserError: a later version wrote it.
        DamagedStage: it holds no results of its kind of stage.
    """
    version, kind = plain.get("version", 1), str(plain.get("kind"))
    if isinstance(version, int) and version > VERSION:
        raise UserError(
            f"{folder / RECORD} is of version {version} and this lowrank-bench reads versions up to {VERSION}; upgrade "
            "it, or read the run's results.csv, which stays readable"
        )
    try:
        known = _SPECS[kind].model_fields
        spec = {name: value for name, value in plain["config"].items() if name in known}
        return _ANY.validate_python({**plain, "spec": spec | {"inputs": plain["inputs"], "kind": kind}})
    except (ValidationError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(folder, f"{RECORD} holds no results of {_NOUNS.get(kind, 'an evaluation')}") from error
