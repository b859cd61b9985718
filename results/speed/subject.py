"""Checkpoints whose speed is measured: where each one came from, as the fields of its records."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from ...foundation.errors import UserError
from ...foundation.files import canonical_json, digest, read_json
from ...models.export import is_factorised
from ...models.folder_checks import check_no_adapter
from ...models.identity import model_sha256
from ...models.loading import DTYPES, load_skeleton, verify_folder, weights_size
from ...models.matrices import model_size
from ...models.presets import PRESETS, folder_name, resolve_model
from ...models.version4 import config_keys
from ...records.schema import SCHEMA_VERSION, Record
from ...runners.compression_note import has_note, read_note
from ...runners.stage_records import CompressRecord, QuantiseRecord, RecoverRecord
from ...runners.store.files import stage_around
from ...runners.store.folders import StageStore, verify_around
from ...runners.store.report_file import read_report
from ..cells import checkpoint_folder, find_cell, is_cell


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint came from: the fields of `records.schema.Record` that do not come from the measurement."""

    sweep: str
    model: str
    model_sha256: str
    params_original: int
    params: int
    task: str = "none"
    method: str = "none"
    label: str = "pretrained"
    stage: str = "pretrained"
    options: str = "{}"
    tuned: str = "{}"
    seed: int = 0
    ratio_target: float = 1.0
    ratio_matrices: float = 1.0
    steps_finetune: int = 0
    steps_compress: int = 0
    steps_recover: int = 0
    steps_budget: int = 0
    tokens_finetune: int = 0
    tokens_compress: int = 0
    tokens_recover: int = 0
    seconds_finetune: float = 0.0
    seconds_fit: float = 0.0
    seconds_compress: float = 0.0
    seconds_recover: float = 0.0
    seconds_quantise: float = 0.0
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def of(cls, record: Record) -> Origin:
        """Return that of a record's checkpoint."""
        return cls(**{field.name: getattr(record, field.name) for field in fields(cls)})

    @property
    def ratio(self) -> float:
        """Original over measured parameters."""
        return self.params_original / self.params

    def columns(self) -> dict[str, str | int | float]:
        """Return the fields of records, those that follow from others among them."""
        return asdict(self) | {"ratio": self.ratio, "kept": 1 / self.ratio}


@dataclass(frozen=True)
class Subject:
    """One checkpoint to measure.

    Attributes:
        name: for people.
        folder: where its weights are.
        factorised: whether it is stored as factors.
        origin: where it came from.
        shape: equal for checkpoints that are the same model when dense.
    """

    name: str
    folder: Path
    factorised: bool
    origin: Origin
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
        return _subject(name, cell.checkpoint(), Origin.of(cell.record))
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
    known = subject.origin
    # What a run calls it, so that its records join those of the run.
    state = "finetuned" if known.steps_finetune else "pretrained"
    origin = Origin(
        known.sweep,
        known.model,
        known.model_sha256,
        known.params_original,
        known.params_original,
        task=known.task,
        label=state,
        stage=state,
        tuned=known.tuned,
        seed=known.seed,
    )
    return Subject(f"{origin.model} dense", folder, False, origin, subject.shape)


def _subject(name: str, folder: Path, origin: Origin) -> Subject:
    config = read_json(folder / "config.json")
    # A dense export says some things a second time, for version 4 of transformers.
    skipped = {"quantization_config", "transformers_version", *config_keys(config)}
    config = {key: value for key, value in config.items() if key not in skipped}
    return Subject(name, folder, is_factorised(folder), origin, digest([config, origin.params_original]))


def _origin(name: str, folder: Path, model: str | None) -> Origin:
    params, sha256 = weights_size(folder).parameters, model_sha256(folder)
    origin = Origin("speed", model or folder_name(folder, sha256), sha256, params, params)
    if not is_factorised(folder):
        return origin  # a dense folder counts as itself, whatever it came from
    original = model_size(load_skeleton(folder)).parameters
    origin = replace(origin, params_original=original, method="lowrank", label=name, stage="compressed")
    origin = _from_note(origin, folder) if has_note(folder) else _from_stages(origin, folder.resolve())
    known = origin.ratio_target != 1  # else nobody says what was asked for
    return origin if known else replace(origin, ratio_target=origin.ratio)


def _from_note(origin: Origin, folder: Path) -> Origin:
    """Return what ``compression.json`` says about a factorised checkpoint."""
    note = read_note(folder)
    return replace(
        origin,
        model=note.model,
        model_sha256=note.model_sha256,
        method=note.method_name,
        label=note.label,
        options=canonical_json(note.method),
        task=note.task or "none",
        seed=note.seed,
        ratio_target=note.ratio_target,
        ratio_matrices=note.ratio_matrices,
        params_original=note.parameters_before,
        params=note.parameters,
    )


def _from_stages(origin: Origin, folder: Path) -> Origin:
    """Return what the stages say that made ``KEY/model`` or ``KEY/ratio-R/model``; of other folders what is known."""
    around = stage_around(folder)
    if around is None:
        return origin
    store, options, state = StageStore(around.parent), dict[str, int](), "compressed"
    record = store.record(around.name)
    while not isinstance(record, CompressRecord):
        if isinstance(record, QuantiseRecord):
            options["bits"] = record.spec.scheme.bits
        elif isinstance(record, RecoverRecord):
            state = "recovered"
        folder = store.root / record.spec.inputs.model
        if not folder.is_dir():  # the stage was removed: what made the checkpoint is not known
            return origin
        verify_around(folder)
        record = store.record(folder.relative_to(store.root).parts[0])
    report = read_report(folder.parent)
    return replace(
        origin,
        method=record.spec.method,
        label=record.spec.method,
        options=canonical_json(record.spec.options | options),
        stage=state,
        seed=record.spec.seed,
        ratio_target=float(folder.parent.name.removeprefix("ratio-")),
        ratio_matrices=report.ratio_matrices,
        params_original=report.parameters_before,
        params=report.parameters,
    )
