"""What each kind of stage returns, and what its ``stage.json`` holds as ``result``.

The function of a stage fills in what it knows; only that is written. The same models read it again: fields that this
version does not know are left out, and what earlier versions did not write has a default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator

from ..evals.base import Metric, Outcome, metric_from_plain, metric_to_plain
from ..evals.tasks.encoded_sets import DataCard

if TYPE_CHECKING:  # these import torch, which readers of finished stages do without
    from ..methods.base import CompressionReport, TrainingLog
    from ..methods.recoveries.base import Phase


class Lenient(BaseModel):
    """Part of a record: unknown fields are ignored, so that records of later minor changes stay readable."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class RecordedMemory(Lenient):
    """How a stage held its model.

    Attributes:
        load: layer by layer from disk, or whole.
        why: in words, where a large model was loaded whole or trained otherwise than usual; else empty.
        predicted_peak_bytes: of one process, by formula; None where there is none.
        note: what the formula guesses, if it guesses.
        warning: that a training might not fit.
    """

    load: Literal["layerwise", "whole"] = "whole"
    why: str = ""
    predicted_peak_bytes: int | float | None = None
    note: str = ""
    warning: str = ""

    def plain(self) -> dict[str, Any]:
        """Return what is known as plain data for ``compression.json``."""
        return self.model_dump(exclude_unset=True)


class RecordedTraining(Lenient):
    """What a training used; see `methods.base.TrainingLog`. The loss is None where it was not finite."""

    steps: int
    tokens: int
    seconds: float = 0.0
    loss: float | None = None
    resumed_seconds: float = 0.0
    resumed_peak_memory_bytes: int = 0

    @classmethod
    def of(cls, log: TrainingLog) -> RecordedTraining:
        """Return the record of a log."""
        return cls(**asdict(log))


class RecordedPhase(Lenient):
    """One training of a recovery; see `methods.recoveries.base.Phase`."""

    name: str = ""
    trained_parameters: int = 0
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float | None = None


class RecordedRecovery(Lenient):
    """Which recovery ran, and its trainings in their order."""

    name: str = ""
    phases: tuple[RecordedPhase, ...] = ()

    @classmethod
    def of(cls, name: str, phases: Sequence[Phase]) -> RecordedRecovery:
        """Return the record of what a recovery did."""
        return cls(name=name, phases=tuple(RecordedPhase(**phase.plain()) for phase in phases))


class RecordedProcesses(Lenient):
    """The processes that trained together: how many, how the model was spread, and the largest one's peak memory."""

    count: int
    strategy: str = ""
    accelerate: str = ""
    peak_memory_bytes: int = 0


class RecordedEngine(Lenient):
    """The engine of an evaluation and its library's version; memory and CPU seconds are those of its processes."""

    name: str = ""
    version: str = ""
    peak_memory_bytes: int = 0
    cpu_seconds: float = 0.0


class RecordedReport(Lenient):
    """What a method reported of one ratio; see `methods.base.CompressionReport`."""

    parameters: int
    ratio_matrices: float
    ranks: dict[str, int] = Field(default_factory=dict)
    dense: dict[str, str] = Field(default_factory=dict)
    steps: int = 0
    tokens: int = 0
    parameters_before: int = 0
    matrices_before: int = 0
    matrices_after: int = 0
    recover_lr_scale: float = 1.0
    details: Mapping[str, Any] = Field(default_factory=dict)
    ratio: float = 0.0

    @classmethod
    def of(cls, report: CompressionReport) -> RecordedReport:
        """Return the record of a report."""
        return cls(**report.summary())


class HeldOut(Lenient):
    """Of a recovery in a tuned sweep: mean loss in nats a token on held-out training examples, and what was read.

    The loss is None where it was not finite.
    """

    loss: float | None
    examples: int
    tokens: int


class StageResult(Lenient):
    """What every kind of stage may have.

    Attributes:
        warnings: what a reader of the result should know.
        memory: how the model was held, and what that was estimated to need.
        data_card: of the data of a task file.
        training: what a stage that trains used.
        processes: those that trained together.
    """

    warnings: tuple[str, ...] = ()
    memory: RecordedMemory = RecordedMemory()
    data_card: DataCard | None = None
    training: RecordedTraining | None = None
    processes: RecordedProcesses | None = None

    def plain(self) -> dict[str, Any]:
        """Return what was filled in as plain data for ``stage.json``."""
        filled_in = self.model_dump(exclude_unset=True)
        return {name: value for name, value in filled_in.items() if value is not None}

    def earlier_seconds(self) -> float:
        """Return the seconds of earlier attempts of a training that was resumed."""
        return self.training.resumed_seconds if self.training else 0.0

    def processes_cpu_seconds(self) -> float:
        """Return the CPU seconds of an engine's processes; those of processes that train together are not known."""
        return 0.0

    def other_peak_memory(self) -> int:
        """Return the most memory, in bytes, of other processes that the stage started or of its earlier attempts."""
        together = self.processes.peak_memory_bytes if self.processes else 0
        return max(together, self.training.resumed_peak_memory_bytes if self.training else 0)


class TrainingResult(StageResult):
    """Of a finetuning or a recovery.

    Attributes:
        training: what it used.
        diverged: why a learning rate of a tuned sweep left no model; else empty.
        examples, dropped: of the training data, and how many were too long.
        recovery: which one ran, and its trainings.
        held_out: of a recovery in a tuned sweep.
    """

    training: RecordedTraining
    diverged: str = ""
    examples: int = 0
    dropped: int = 0
    recovery: RecordedRecovery | None = None
    held_out: HeldOut | None = None


class FitResult(StageResult):
    """Of a fit.

    Attributes:
        matrices: how many the method factorises.
        calibration: what was read, ``examples``, ``tokens`` and the longest example's ``length``; empty without data.
        dropped: examples that were too long.
        added_jitter: what was added to the diagonals of moments that had no Cholesky factor, by matrix or group.
    """

    matrices: int = 0
    calibration: dict[str, int] = Field(default_factory=dict)
    dropped: int = 0
    added_jitter: dict[str, tuple[float, ...]] = Field(default_factory=dict)


class CompressResult(StageResult):
    """Of a compression: reports by ratio, as ``f"{ratio:g}"`` writes it; calibration as of a fit.

    ``training`` and ``diverged`` are as of a recovery, for methods that train.
    """

    reports: dict[str, RecordedReport]
    diverged: str = ""
    calibration: dict[str, int] = Field(default_factory=dict)

    def report(self, ratio: float) -> RecordedReport:
        """Return the report of one of the stage's ratios."""
        return self.reports[f"{ratio:g}"]

    def has_report(self, ratio: float) -> bool:
        """Whether this is one of the stage's ratios."""
        return f"{ratio:g}" in self.reports


class QuantiseResult(StageResult):
    """Of rounding weights: bytes of the packed file; calibration as of a fit, for a correction that reads data."""

    packed_bytes: int
    calibration: dict[str, int] = Field(default_factory=dict)


class Measurement(Lenient):
    """What a benchmark measured of one model, without the samples.

    Attributes:
        details: plain data of the benchmark's, such as the isolation of executed code.
        variant: full name of the benchmark, where the evaluation settled it.
    """

    metrics: tuple[Metric, ...]
    dataset_sha256: str
    prompt_sha256: str
    details: Mapping[str, Any]
    variant: str = ""

    @classmethod
    def of(cls, outcome: Outcome, variant: str) -> Measurement:
        """Return the record of an outcome; ``variant`` counts where the outcome has none of its own."""
        return cls(
            metrics=tuple(outcome.metrics),
            dataset_sha256=outcome.dataset_sha256,
            prompt_sha256=outcome.prompt_sha256,
            details=outcome.details,
            variant=outcome.variant or variant,
        )

    @field_validator("metrics", mode="before")
    @classmethod
    def _from_plain(cls, metrics: Any) -> Any:
        return tuple(metric if isinstance(metric, Metric) else metric_from_plain(metric) for metric in metrics)

    @field_serializer("metrics")
    def _to_plain(self, metrics: tuple[Metric, ...]) -> list[dict[str, Any]]:
        return [metric_to_plain(metric) for metric in metrics]


class EvaluateResult(Measurement, StageResult):
    """Of an evaluation.

    Attributes:
        engine: what computed.
        parameters, bytes: size of the evaluated checkpoint's weights; of a quantised one they are dequantised.
    """

    engine: RecordedEngine | None = None
    parameters: int = 0
    bytes: int

    def processes_cpu_seconds(self) -> float:
        """Return the CPU seconds of the engine's processes."""
        return self.engine.cpu_seconds if self.engine else 0.0

    def other_peak_memory(self) -> int:
        """Return the peak memory of the engine's processes, in bytes."""
        return self.engine.peak_memory_bytes if self.engine else 0
