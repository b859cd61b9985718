"""What a finished stage left: its ``stage.json`` as a typed record, one model for each kind.

`StageStore.record` is the place that reads them. Fields that this version does not know are left out, so that runs of
earlier versions stay readable; only a record of a later version is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, TypeAdapter, ValidationError

from ..foundation.errors import UserError
from .provenance import Provenance
from .specs import CompressSpec, EvaluateSpec, FinetuneSpec, FitSpec, ModelLocation, QuantiseSpec, RecoverSpec, Spec
from .stage_results import (
    CompressResult,
    EvaluateResult,
    FitResult,
    Lenient,
    QuantiseResult,
    TrainingResult,
)
from .store.files import RECORD, damaged, read_record

VERSION = 1
"""Of ``stage.json``; raised when its fields change their meaning. Records without one are of version 1."""


class RecordedExecution(Lenient):
    """Where a stage ran: torch device, where its model lay, folder with local datasets, and the task file's text.

    ``ranks`` are the parts that a fit keeps of each unit's factors, by name; None for all.
    """

    device: str
    model: ModelLocation
    data: Path | None = None
    task_file: str | None = None
    ranks: dict[str, int] | None = None


class _Record(Lenient):
    """What all kinds have in common.

    Attributes:
        spec: what was done; see `specs`.
        execution: where.
        seconds: it took, earlier attempts of a resumed training included.
        cpu_seconds: of all threads of the process and of its engine's processes, without those that train together and
            without earlier attempts; 0 in records of earlier versions.
        started_at, ended_at: ISO 8601.
        peak_memory_bytes: of the process, or of a larger one that it started.
        files: size in bytes of each file in the stage's folder, by its path there.
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
    files: dict[str, int]


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


def read_stage(folder: Path) -> StageRecord:
    """Return the typed record of the stage in a folder; whether its files are there is not looked at.

    Raises:
        UserError: see `parse_record`; or there is no record, or it has changed since it was written.
    """
    return parse_record(read_record(folder), folder)


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
