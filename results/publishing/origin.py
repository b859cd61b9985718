"""What is known of a factorised checkpoint, from the records of its run or from the files beside its weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...foundation.errors import UserError
from ...models.export import is_factorised
from ...models.folder_checks import check_folder
from ...models.identity import model_sha256
from ...records.files import read_records
from ...runners.compression_note import FILE, has_note, read_note
from ..cells import find_cell, is_cell

_COLUMNS = ("benchmark", "variant", "metric", "value", "low", "high", "n", "engine")


@dataclass(frozen=True)
class Measurement:
    """One headline metric of the checkpoint.

    Attributes:
        benchmark: name of the benchmark, such as ``gsm8k``.
        variant: the benchmark with its size and prompt, such as ``gsm8k-1319-0shot``.
        metric, scorer: what was measured, and how completions were judged (may be empty).
        value, low, high: the metric and its 95 % interval, shares in 0..1.
        n: number of problems or windows.
        engine: what ran the model.
        date: UTC time, empty where it is not known.
        uncompressed: the same metric of the uncompressed model of the same run, None where it was not measured.
    """

    benchmark: str
    variant: str
    metric: str
    scorer: str
    value: float
    low: float
    high: float
    n: int
    engine: str
    date: str = ""
    uncompressed: float | None = None


@dataclass(frozen=True)
class Origin:
    """A factorised checkpoint and how it was made.

    Attributes:
        folder: its files.
        sha256: its identity (`model_sha256`).
        model, model_sha256: name and identity of the model that was compressed.
        method, label, options: the method and its options.
        ratio: original / compressed parameters of the whole model.
        parameters_before, parameters: of the whole model.
        is_trained: whether any training belongs to it, before, while or after compressing.
        package, git_commit: version and commit of lowrank-bench that made it.
        measurements: what was measured on exactly these weights.
    """

    folder: Path
    sha256: str
    model: str
    model_sha256: str
    method: str
    label: str
    options: dict[str, Any]
    ratio: float
    parameters_before: int
    parameters: int
    is_trained: bool
    package: str
    git_commit: str
    measurements: tuple[Measurement, ...]


def read_origin(checkpoint: str, evaluations: Sequence[Path] = (), seed: int | None = None) -> Origin:
    """Return what is known of a checkpoint.

    Args:
        checkpoint: ``RUN:LABEL@RATIO``, or a folder that `bench compress` wrote.
        evaluations: folders of ``bench eval --out`` of that folder.
        seed: which seed of a run, where there are several.

    Raises:
        UserError: it is not factorised or damaged, nothing says how it was made, or an evaluation is of other weights.
    """
    if not is_cell(checkpoint):
        return _of_folder(Path(checkpoint), evaluations)
    if evaluations:
        raise UserError("--evaluation belongs to a folder; the records of a run's cell are read by themselves")
    return _of_cell(checkpoint, seed)


def _of_cell(name: str, seed: int | None) -> Origin:
    cell = find_cell(name, seed=seed, any_benchmark=True)
    folder, record = cell.checkpoint(), cell.record
    _check_factorised(folder)
    frame = read_records(Path(name.partition(":")[0]))
    frame = frame[frame.headline & (frame.seed == record.seed)]
    own = frame[(frame.label == record.label) & (frame.ratio_target == record.ratio_target)]
    own = own[(own.stage == record.stage) & (own.steps_budget == record.steps_budget)]
    dense = frame[frame.method == "none"]
    condition = ["variant", "metric", "scorer", "n", "engine"]
    # Records are sorted by stage, so under equal conditions the finetuned model replaces the pretrained one.
    values = {tuple(row[column] for column in condition): row["value"] for row in dense.to_dict("records")}
    rows = own.to_dict("records")
    return Origin(
        folder,
        model_sha256(folder),
        record.model,
        record.model_sha256,
        record.method,
        record.label,
        json.loads(record.options),
        record.ratio,
        record.params_original,
        record.params,
        any((record.steps_finetune, record.steps_compress, record.steps_recover)),
        json.loads(record.versions).get("lowrank_bench", ""),
        record.git_commit,
        tuple(
            Measurement(
                **{
                    name: row[name]
                    for name in ("benchmark", "variant", "metric", "value", "low", "high", "n", "engine")
                },
                scorer=_text(row["scorer"]),
                date=row["evaluated_at"],
                uncompressed=values.get(tuple(row[column] for column in condition)),
            )
            for row in rows
        ),
    )


def _of_folder(folder: Path, evaluations: Iterable[Path]) -> Origin:
    _check_factorised(folder)
    if not has_note(folder):
        raise UserError(
            f"{folder} has no {FILE}, so nothing says how it was made; name a folder that bench compress wrote, or a "
            "cell such as runs/tiny-toy-math:svd@3"
        )
    note, sha256 = read_note(folder), model_sha256(folder)
    return Origin(
        folder,
        sha256,
        note.model,
        note.model_sha256,
        note.method_name,
        note.label,
        note.method,
        note.ratio,
        note.parameters_before,
        note.parameters,
        bool(note.steps),
        note.provenance.versions.get("lowrank_bench", ""),
        note.provenance.git_commit or "",
        tuple(measurement for evaluation in evaluations for measurement in _evaluated(evaluation, folder, sha256)),
    )


def _evaluated(evaluation: Path, folder: Path, sha256: str) -> list[Measurement]:
    if not (evaluation / "metrics.json").is_file():
        raise UserError(f"{evaluation} has no metrics.json; name a folder that bench eval {folder} --out DIR wrote")
    measured = _load(evaluation / "metrics.json")
    if measured.get("model_sha256") != sha256:
        raise UserError(f"{evaluation} was measured on other weights than {folder} has; run bench eval {folder} again")
    return [
        Measurement(
            benchmark=benchmark,
            variant=outcome["variant"],
            metric=metric["name"],
            **{name: metric[name] for name in ("scorer", "value", "low", "high", "n")},
            engine=measured["engine"]["name"],
        )
        for benchmark, outcome in measured["benchmarks"].items()
        for metric in outcome["metrics"]
        if metric["headline"] and None not in (metric["value"], metric["low"], metric["high"])
    ]


def _check_factorised(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise UserError(f"the folder {folder} holds no model (config.json is missing); name a factorised checkpoint")
    check_folder(folder)
    if not is_factorised(folder):
        raise UserError(f"{folder} is not factorised; bench push publishes factorised checkpoints alone")


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON: {error}; make it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no JSON object; make it again")
    return content


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
