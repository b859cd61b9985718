"""One model, compressed into a folder: the fit and the compress stage of one cell of a sweep, without the sweep."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import transformers
from rich.console import Console

from ..foundation.errors import UserError, unknown
from ..foundation.files import new_folder
from ..foundation.memory import release_memory
from ..foundation.progress import Progress, throttled
from ..methods.base import CompressionReport, create_method
from ..methods.ranks.budget import Budget
from ..models.dtypes import SAVE_DTYPES
from ..models.skeletons import load_exact_skeleton
from ..models.untouched import Untouched, out_of_reach, untouched
from .compression_note import CompressionNote
from .config import MethodSpec, SweepConfig, make_config, nest, parse_method
from .estimates.memory import check_plan, load_modes, memory_rows
from .estimates.seconds import stage_seconds
from .executors.local import Event, divide_cores
from .plan import Plan, make_plan
from .process_setup import refuse_launchers
from .progress import LOG_FILE, StageProgress
from .provenance import provenance
from .specs import Stage
from .stage_records import CompressRecord, FitRecord
from .stages.perform import perform
from .store.folders import MODEL_FOLDER, StageStore, ratio_folder
from .store.report_file import read_report
from .threads import cpu_threads

_STAGES_FOLDER = ".stages"
"""Where the two stages lie inside the output folder until it is complete."""


@dataclass(frozen=True)
class CompressRequest:
    """What `compress` needs to know.

    Attributes:
        model: preset, folder or hub id.
        method: as in ``--method``, such as ``"svd-llm:samples=64"``.
        ratio: original / compressed parameters of the whole model.
        out: new folder for the checkpoint.
        task: where methods that need data take them from; the others need none.
        steps: of the budget that a method that trains shares with its recovery in a sweep; None takes the recipe's.

    The other fields are those of `SweepConfig`.
    """

    model: str
    method: MethodSpec | str
    ratio: float
    out: Path
    task: str | None = None
    revision: str | None = None
    data: Path | None = None
    train_set: str | None = None
    steps: int | None = None
    seed: int = 42
    save_dtype: str | None = None
    device: str = "auto"
    recipe: str = "auto"
    memory: str = "auto"
    rank_multiple: int = 1
    placement: str = "auto"
    calibration_dtype: str = "auto"

    @property
    def spec(self) -> MethodSpec:
        """The method with its options."""
        return parse_method(self.method) if isinstance(self.method, str) else self.method


@dataclass(frozen=True)
class Compressed:
    """What `compress` did.

    Attributes:
        report: the method's own.
        dense: all that stays dense, the largest first.
        warnings: what a reader of the result should know.
        calibration: what was read, ``examples``, ``tokens`` and the longest example's ``length``, by stage (``fit``,
            ``compress``); a stage that read no data is left out.
    """

    report: CompressionReport
    dense: list[Untouched]
    warnings: list[str]
    calibration: dict[str, dict[str, int]] = field(default_factory=dict)


class _CellConfig(SweepConfig):
    """A sweep of one cell, whose task may be empty."""

    needs_task: ClassVar[bool] = False


def plan_compression(request: CompressRequest, dry: bool = False) -> Plan:
    """Check everything that can be checked without work, and return the plan: one fit and one compress stage.

    Args:
        request: what to do.
        dry: nothing is going to run: a preset's shapes count where the hub cannot be reached.

    Raises:
        UserError: anything unusable, a missing task among it.
    """
    refuse_launchers()
    Budget(request.ratio, multiple=request.rank_multiple)  # what is unusable is refused before anything is loaded
    if request.save_dtype not in (None, *SAVE_DTYPES):
        raise unknown("dtype", str(request.save_dtype), SAVE_DTYPES)
    if request.steps is not None and request.steps < 0:
        raise UserError(f"{request.steps} steps are not possible; use 0 or more, or leave --steps out")
    values: dict[str, Any] = {
        "model": request.model,
        "revision": request.revision,
        "task": request.task or "",
        "train_set": request.train_set,
        "data": request.data,
        "methods": (request.spec,),
        "ratios": (request.ratio,),
        "rank_multiple": request.rank_multiple,
        "calibration_dtype": request.calibration_dtype,
        "seeds": (request.seed,),
        "recipe": request.recipe,
        "finetune": {"steps": 0},
        "recover": {"steps": request.steps},
        "save_dtype": request.save_dtype,
        "device": request.device,
        "memory": request.memory,
        "placement": request.placement,
        "checkpoint_minutes": float("inf"),  # nothing goes on from a folder that is removed
        "engine": "transformers",
        "out": request.out,
    }
    config = make_config(nest(values), _CellConfig)
    method = create_method(request.spec.name, request.spec.options)
    if not config.task and method.requirements.data:
        raise UserError(f"method '{request.spec.name}' needs task data; add --task, such as --task math")
    transformers.utils.logging.disable_progress_bar()
    return make_plan(config, dry=dry, compress_only=True)


def estimate_compression(request: CompressRequest) -> tuple[str, list[tuple[str, ...]], list[str]]:
    """Return what `compress` would do, without doing it: a sentence, `memory_rows`, and warnings.

    Raises:
        UserError: whatever `compress` would refuse before it loads anything.
    """
    plan = plan_compression(request, dry=True)
    text = (
        f"{plan.source.name} ({plan.parameters:,} parameters) by {request.spec.shown} on {plan.device}: at most "
        f"{plan.parameters / request.ratio:,.0f} parameters"
    )
    try:
        notes = [note for of_stage in _memory_notes(plan, request).values() for note in of_stage]
    except UserError as refusal:
        notes = [str(refusal)]
    access = {name.partition(" ")[0]: chosen for name, chosen in load_modes(plan).items()}
    before = filter(None, [out_of_reach(plan.skeleton), plan.calibration_note, *plan.at_hand.notes])
    return text, memory_rows(access), [*before, *notes]


def compress(request: CompressRequest, progress: Progress | None = None, console: Console | None = None) -> Compressed:
    """Compress one model as it is, without finetuning it, and write a factorised checkpoint.

    The stages are those of a sweep without finetuning, and give its bytes. Beside the weights, ``compression.json``
    says what was done, what stays dense and why; ``run.log`` says when. An error or an interruption leaves nothing
    behind.

    Args:
        request: what to do.
        progress: called with (done, total) while a stage works.
        console: where lines, or on a terminal a progress bar, say what runs; None is silent.

    Raises:
        UserError: anything unusable, an existing output folder, or a missing task.
    """
    plan = plan_compression(request)
    notes = _memory_notes(plan, request)
    if console and plan.calibration_note:
        console.print(f"note: {plan.calibration_note}", highlight=False, markup=False, soft_wrap=True)
    if console and (dense := out_of_reach(plan.skeleton)):
        console.print(f"note: {dense}", highlight=False, markup=False, soft_wrap=True)
    with new_folder(request.out) as folder:
        store = StageStore(folder / _STAGES_FOLDER)
        seconds = stage_seconds(plan) if console else {}
        shown = StageProgress(console or Console(quiet=True), plan.stages, seconds, 1, folder / LOG_FILE)
        # As many threads as a sweep's worker has, or last digits differ.
        with shown, cpu_threads(divide_cores(None, plan.device, plan.parameters, 1)[1]):
            for stage in plan.stages.values():
                _run(stage, store, shown, progress)
        records = {key: store.record(key) for key in plan.stages}
        (fit,) = (record for record in records.values() if isinstance(record, FitRecord))
        (done,) = (record for record in records.values() if isinstance(record, CompressRecord))
        written = store.path(done.key) / ratio_folder(request.ratio)
        report = read_report(written, tensors=True)
        for file in (written / MODEL_FOLDER).iterdir():
            file.rename(folder / file.name)
        shutil.rmtree(folder / _STAGES_FOLDER)
        dense_parts = untouched(load_exact_skeleton(str(folder)), report.dense)
        training = done.result.memory.warning
        warnings = [*fit.result.warnings, *notes["placement"], *notes["compress"], *([training] if training else [])]
        people = {"stays_dense": [asdict(part) for part in dense_parts], "warnings": warnings}
        CompressionNote.model_validate(_origin(plan, request, fit, done) | report.summary() | people).write(folder)
    return Compressed(report, dense_parts, warnings, _readings(fit, done))


def _run(stage: Stage, store: StageStore, shown: StageProgress, progress: Progress | None) -> None:
    report = shown.reporter(stage, progress)
    here = store.ready(stage)
    shown.start(stage)
    try:
        store.run(here, partial(perform, here, report=report if progress else throttled(report)))
    finally:
        release_memory()
    shown.event(Event(stage.key, "done"), stage)


def _memory_notes(plan: Plan, request: CompressRequest) -> dict[str, list[str]]:
    """Return warnings that the memory may not be enough, by stage, after one of where a training keeps its weights.

    Raises:
        UserError: it certainly is not.
    """
    check_plan(plan, plan.stages)
    notes = {"placement": [f"the training keeps {choice.why}" for choice, _ in plan.trainings.values() if choice.why]}
    for name, access in load_modes(plan).items():
        kind = name.partition(" ")[0]
        notes[kind] = access.check(f"{kind} of {request.spec.shown}", plan.device)
    return notes


def _origin(plan: Plan, request: CompressRequest, fit: FitRecord, done: CompressRecord) -> dict[str, Any]:
    """Return how the model was made, as ``compression.json`` says it beside the method's report."""
    peak = max(fit.peak_memory_bytes, done.peak_memory_bytes)
    return {
        "model": plan.source.name,
        "model_sha256": plan.source.sha256,
        "method_name": request.spec.name,
        "method": done.spec.options,
        "label": request.spec.shown,
        "task": request.task or "",
        "ratio_target": request.ratio,
        "rank_multiple": request.rank_multiple,
        "seed": request.seed,
        "save_dtype": done.spec.save_dtype,
        "calibration_length": fit.result.calibration.get("length"),
        "calibration": _readings(fit, done),
        "calibration_dtype": fit.spec.calibration_dtype,
        "added_jitter": fit.result.added_jitter,
        "memory": {"fit": fit.result.memory.plain(), "compress": done.result.memory.plain(), "peak_bytes": peak},
        "provenance": provenance().plain(),
    }


def _readings(fit: FitRecord, done: CompressRecord) -> dict[str, dict[str, int]]:
    """Return what each stage read for its statistics or its search."""
    readings = {"fit": fit.result.calibration, "compress": done.result.calibration}
    return {kind: reading for kind, reading in readings.items() if reading}
