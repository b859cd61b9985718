"""Checkpoints whose speed is measured: where each one came from, as the fields of its records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...foundation.errors import UserError
from ...foundation.files import canonical_json, digest, read_json
from ...models.export import is_factorised
from ...models.folder_checks import check_no_adapter
from ...models.identity import model_sha256
from ...models.loading import DTYPES, load_skeleton, verify_folder, weights_size
from ...models.matrices import model_size
from ...models.presets import PRESETS, folder_name, resolve_model
from ...models.version4 import config_keys
from ...records.files import COLUMNS, SCHEMA_VERSION
from ...runners.compression_note import has_note, read_note
from ...runners.stage_records import CompressRecord, QuantiseRecord, RecoverRecord
from ...runners.store.files import stage_around
from ...runners.store.folders import StageStore, verify_around
from ...runners.store.report_file import read_report
from ..cells import checkpoint_folder, find_cell, is_cell

_MEASURED = {
    *("benchmark", "variant", "metric", "scorer", "headline", "higher_is_better", "value", "low", "high", "confidence"),
    *("n", "seconds_evaluate", "peak_memory_bytes", "engine", "dtype", "device", "threads", "isolation"),
    *(
        "dataset_sha256",
        "prompt_sha256",
        "versions",
        "git_commit",
        "evaluated_at",
        "stage_key",
        "bytes",
        "runtime_bytes",
    ),
}


@dataclass(frozen=True)
class Subject:
    """One checkpoint to measure.

    Attributes:
        name: for people.
        folder: where its weights are.
        factorised: whether it is stored as factors.
        origin: the fields of its records that do not come from the measurement.
        shape: equal for checkpoints that are the same model when dense.
    """

    name: str
    folder: Path
    factorised: bool
    origin: dict[str, Any]
    shape: str

    @property
    def stored_dtype(self) -> str:
        """The number format that ``config.json`` names."""
        config = read_json(self.folder / "config.json")
        dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
        return dtype if dtype in DTYPES else "float32"


def find_subject(name: str, seed: int | None = None, storage: str | None = None) -> Subject:
    """Find a checkpoint by name: a folder, a cell of a run ``RUN:LABEL@RATIO``, or a preset that lies in a folder.

    Raises:
        UserError: nothing of that name, or a damaged folder.
    """
    label = name
    model: str | None = None
    if not Path(name).is_dir() and is_cell(name):
        cell = find_cell(name, seed=seed, any_benchmark=True, storage=storage)
        return _subject(name, cell.checkpoint(), {key: cell.record[key] for key in COLUMNS if key not in _MEASURED})
    if name in PRESETS:
        source = resolve_model(name)
        if not source.is_local:
            raise UserError(
                f"'{name}' lies on the hub; download it and name its folder, so that loading is what is timed"
            )
        folder, model = Path(source.location), name
    else:
        folder = checkpoint_folder(name)
        label = folder.resolve().name
    check_no_adapter(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"the folder {folder} holds no model (config.json is missing); name a checkpoint's folder")
    verify_folder(folder)
    return _subject(label, folder, _origin(label, folder, model))


def dense_twin(subject: Subject, folder: Path) -> Subject:
    """Return the dense export of a factorised subject, standing for the uncompressed model in its records."""
    origin = dict(subject.origin)
    original = int(origin["params_original"])
    origin |= {"method": "none", "options": "{}", "ratio_target": 1.0, "params": original}
    origin |= {"ratio": 1.0, "kept": 1.0, "ratio_matrices": 1.0}
    origin |= {
        key: 0.0 if key.startswith("seconds_") else 0
        for key in origin
        if key.startswith(("seconds_", "steps_", "tokens_"))
    }
    # What a run calls it, so that its records join those of the run.
    state = "finetuned" if subject.origin["steps_finetune"] else "pretrained"
    origin |= {"stage": state, "label": state}
    return Subject(f"{origin['model']} dense", folder, False, origin, subject.shape)


def _subject(name: str, folder: Path, origin: dict[str, Any]) -> Subject:
    config = read_json(folder / "config.json")
    # A dense export says some things a second time, for version 4 of transformers.
    skipped = {"quantization_config", "transformers_version", *config_keys(config)}
    config = {key: value for key, value in config.items() if key not in skipped}
    return Subject(name, folder, is_factorised(folder), origin, digest([config, int(origin["params_original"])]))


def _origin(name: str, folder: Path, model: str | None) -> dict[str, Any]:
    size = weights_size(folder)
    zero = {
        key: 0.0 if key.startswith("seconds_") else 0
        for key in COLUMNS
        if key.startswith(("seconds_", "steps_", "tokens_"))
    }
    zero.pop("seconds_evaluate")
    sha256 = model_sha256(folder)
    original = model_size(load_skeleton(folder)).parameters
    origin: dict[str, Any] = zero | {
        "schema_version": SCHEMA_VERSION,
        "sweep": "speed",
        "model": model or folder_name(folder, sha256),
        "model_sha256": sha256,
        "task": "none",
        "seed": 0,
        "options": "{}",
        "tuned": "{}",
        "ratio_matrices": 1.0,
        "params_original": original,
        "params": size.parameters,
    }
    if not is_factorised(folder):
        # A dense folder counts as itself, whatever it came from.
        state = {"method": "none", "label": "pretrained", "stage": "pretrained", "params_original": size.parameters}
        return origin | state | {"ratio_target": 1.0, "ratio": 1.0, "kept": 1.0}
    origin |= {"method": "lowrank", "label": name, "stage": "compressed"} | _compression_report(folder)
    ratio = origin["params_original"] / origin["params"]
    return {"ratio_target": ratio} | origin | {"ratio": ratio, "kept": 1 / ratio}


def _compression_report(folder: Path) -> dict[str, Any]:
    """Return what ``compression.json``, or the stage that the folder lies in, says about a factorised checkpoint."""
    if has_note(folder):
        note = read_note(folder)
        return {
            "model": note.model,
            "model_sha256": note.model_sha256,
            "method": note.method_name,
            "label": note.label,
            "options": canonical_json(note.method),
            "task": note.task or "none",
            "seed": note.seed,
            "ratio_target": note.ratio_target,
            "ratio_matrices": note.ratio_matrices,
            "params_original": note.parameters_before,
            "params": note.parameters,
        }
    return _stage_report(folder.resolve())


def _stage_report(folder: Path) -> dict[str, Any]:
    """Return what the stages say that made ``KEY/model`` or ``KEY/ratio-R/model``; nothing for other folders."""
    around = stage_around(folder)
    if around is None:
        return {}
    store, options, state = StageStore(around.parent), {}, "compressed"
    record = store.record(around.name)
    while not isinstance(record, CompressRecord):
        if isinstance(record, QuantiseRecord):
            options["bits"] = record.spec.scheme.bits
        elif isinstance(record, RecoverRecord):
            state = "recovered"
        folder = store.root / record.spec.inputs.model
        if not folder.is_dir():  # the stage was removed: what made the checkpoint is not known
            return {}
        verify_around(folder)
        record = store.record(folder.relative_to(store.root).parts[0])
    report = read_report(folder.parent)
    return {
        "method": record.spec.method,
        "label": record.spec.method,
        "options": canonical_json(record.spec.options | options),
        "stage": state,
        "seed": record.spec.seed,
        "ratio_target": float(folder.parent.name.removeprefix("ratio-")),
        "ratio_matrices": report.ratio_matrices,
        "params_original": report.parameters_before,
        "params": report.parameters,
    }
