"""A sweep's stages: plan, run what is missing, collect records."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console

from ..evals.hosting.choice import SCORING_NOTE
from ..foundation.errors import UserError
from ..foundation.files import write_atomic
from ..foundation.progress import reporting
from ..models.untouched import out_of_reach
from ..records.checksums import CHECKSUMS_NAME
from ..records.files import write_records
from ..records.schema import Record
from .collect import collect
from .config import SweepConfig
from .estimates.disk import checkpoint_bytes, disk_bytes
from .estimates.memory import check_plan
from .estimates.seconds import stage_seconds, wall_seconds
from .executors.local import Event, divide_cores, raise_failures, run_stages
from .graph import Plan
from .plan import make_plan
from .process_setup import refuse_launchers
from .progress import LOG_FILE, PLANNING_QUIET, StageProgress, show_progress
from .specs import EvaluateStage, QuantiseStage
from .stage_records import FinetuneRecord, FitRecord, QuantiseRecord
from .store.removal import Removal, by_fit, keeps_all
from .store.shared import SharedStore
from .store.storage import Storage
from .task_files import check_results_folder
from .tracking.trackers import trackers

_SPARE_BYTES = 64 << 20


@dataclass(frozen=True)
class Executed:
    """A plan whose stages have run.

    Attributes:
        plan: the plan.
        records: of all evaluations that are done.
        stages_run: how many stages had to run.
        failed: evaluations that failed, by key.
    """

    plan: Plan
    records: list[Record]
    stages_run: int
    failed: dict[str, Event]

    @property
    def shared(self) -> SharedStore | None:
        """The store, where it is a shared one."""
        return self.plan.store if isinstance(self.plan.store, SharedStore) else None

    def write_records(self) -> tuple[Path, ...]:
        """Write results.csv, results.parquet, their checksums and sweep.yaml; return their paths in that order."""
        config = self.plan.asked
        folder = config.execution.folder / self.plan.name
        csv, parquet = write_records(folder, self.records)
        # Where stages ran is no part of what was asked: the file is the same on each machine, and runs on another one.
        asked = config.model_dump(mode="json", exclude={"execution"}, exclude_none=True, exclude_defaults=True)
        write_atomic(folder / "sweep.yaml", yaml.safe_dump(asked, sort_keys=True, allow_unicode=True))
        return csv, parquet, folder / CHECKSUMS_NAME, folder / "sweep.yaml"

    def raise_failures(self) -> None:
        """Raise the error of the first failed evaluation, if one failed."""
        raise_failures(self.plan.stages, self.failed)


def execute(config: SweepConfig, out: Console) -> Executed:
    """Run the stages of a sweep, or what is missing of them; `results.sweep.run_sweep` makes tables and curves of it.

    Args:
        config: what to run.
        out: where notes and progress go.

    Raises:
        UserError: bad input, before anything is written; or a stage that cannot go on.
    """
    refuse_launchers()
    if config.execution.executor == "ray":
        from .executors.ray import require_ray

        require_ray(config)
    if config.execution.storage:
        Storage(config.execution.storage, attempts=1).check()  # one attempt: a wrong URL is refused at once
    with show_progress(out, "reading data", after=PLANNING_QUIET) as report, reporting(report):
        plan = make_plan(config)
    for warning in [*filter(None, [check_results_folder(plan)]), *plan_warnings(plan)]:
        out.print(f"[yellow]note:[/yellow] {warning}", highlight=False)
    trained = freed = 0
    if plan.provisional:
        plan, trained, freed = _train_grid(plan, out)
    pending = _pending(plan)
    shared = plan.store if isinstance(plan.store, SharedStore) else None
    if shared and (count := shared.publish(plan.stages)):
        out.print(
            f"{count} stages that were only here are in {shared.storage.shown} now",
            soft_wrap=True,
            highlight=False,
        )
    failed: dict[str, Event] = {}
    removal = Removal(plan, pending)
    if trained:
        removal.remove_all()  # of the learning rates that were not chosen, before more is written
    if pending:
        _prepare(plan, pending)
        # Looked at again under the claim: another sweep may have done or removed some of it meanwhile.
        with removal.claim() as pending:
            failed = _run_pending(plan, pending, removal, out)
    elif not trained:
        out.print(f"all {len(plan.stages)} stages are complete already; nothing to do", highlight=False)
    else:
        out.print("the choices are those of before, and their evaluations are complete", highlight=False)
    removal.remove_all()
    if freed := freed + removal.freed:
        out.print(f"weights that no stage reads any more are removed: {freed / 1e6:,.0f} MB (--keep needed)")
    if shared:
        shared.gather([key for key in plan.stages if key not in failed])
    for warning in fit_warnings(plan):
        out.print(f"[yellow]note:[/yellow] {warning}", highlight=False)
    records = collect(plan, failed)
    # Where there are some, results are written before the failure is raised (`Executed.raise_failures`).
    if not records:
        raise_failures(plan.stages, failed)
    return Executed(plan, records, len(pending) + trained, failed)


def _pending(plan: Plan) -> list[str]:
    """Return what is missing of a plan, after the bytes of what it reuses were compared with their checksums."""
    pending = plan.pending()
    for key in reused(plan, pending):
        if plan.store.is_done(key):  # else it comes from the storage, where bytes are compared on the way
            plan.store.verify(key)
    return pending


def _prepare(plan: Plan, pending: list[str]) -> None:
    """Check that what is missing has disk and memory, and prepare the trackers."""
    _check_disk(plan)
    if plan.config.execution.executor != "ray":  # whose machines have memory of their own
        check_plan(plan, pending)
    for tracker in trackers(plan.tracking):
        tracker.prepare()


def _train_grid(plan: Plan, out: Console) -> tuple[Plan, int, int]:
    """Run all stages but roundings and evaluations, and return the plan with what `tuning.choose` chose by them.

    Beside it is how many stages had to run, and how many bytes of weights were removed.

    Raises:
        UserError: see `execute`.
    """
    pending = _pending(plan)
    _prepare(plan, pending)
    removal = Removal(plan, pending)
    with removal.claim() as pending:
        grid = [key for key in pending if plan.stages[key].kind not in ("quantise", "evaluate")]
        _run_pending(plan, grid, removal, out)
    with show_progress(out, "reading data", after=PLANNING_QUIET) as report, reporting(report):
        chosen = make_plan(plan.asked)
    assert not chosen.provisional
    return chosen, len(grid), removal.freed


def _run_pending(plan: Plan, pending: Sequence[str], removal: Removal, out: Console) -> dict[str, Event]:
    config, seconds = plan.config, stage_seconds(plan)
    todo = {key: plan.stages[key] for key in (pending if keeps_all(plan) else by_fit(plan, pending))}
    log = config.execution.folder / plan.name / LOG_FILE

    def show(workers: int) -> StageProgress:
        out.print(f"log      {log}", soft_wrap=True, highlight=False)
        return StageProgress(out, todo, seconds, workers, log)

    if config.execution.executor == "ray":
        from .executors import ray as ray_executor

        with ray_executor.ray_session(config.execution.address) as nodes:
            share = ray_executor.share_of(config.execution.workers, plan.device, plan.parameters, nodes)
            with show(min(share.slots, len(todo))) as progress:
                on_event = removal.after(progress.event)
                return ray_executor.run_stages(todo, plan.needs, plan.store, share, on_event, progress.start)
    workers, threads = divide_cores(config.execution.workers, plan.device, plan.parameters, len(pending))
    with show(workers) as progress:
        on_event = removal.after(progress.event)
        return run_stages(todo, plan.needs, plan.store, workers, threads, on_event, progress.start)


def reused(plan: Plan, pending: Sequence[str]) -> list[str]:
    """Return the finished stages whose files this run is going to read: inputs of what is to do, and evaluations."""
    read_keys = {need for key in pending for need in plan.needs[key]}
    read_keys |= {key for key, stage in plan.stages.items() if stage.kind == "evaluate"}
    return [key for key in plan.stages if key in read_keys and key not in set(pending)]


def _scoring_notes(plan: Plan) -> list[str]:
    """Say that likelihoods have another engine than completions, and which results of an earlier run are left out."""
    scored = [stage for stage in plan.stages.values() if isinstance(stage, EvaluateStage)]
    scored = [stage for stage in scored if plan.engine.scoring and stage.spec.engine == plan.engine.scoring]
    if not scored:
        return []
    changed = {"engine": plan.engine.engine}
    twins = [stage.model_copy(update={"spec": stage.spec.model_copy(update=changed)}) for stage in scored]
    finished = len(twins) - len(plan.store.missing([twin.key for twin in twins]))
    earlier = f"{finished} finished evaluation{'s' * (finished != 1)} by {plan.engine.engine}"
    return [SCORING_NOTE, *([f"{earlier} of an earlier run are left out"] if finished else [])]


def plan_warnings(plan: Plan) -> list[str]:
    """Return what a reader of the results should know before the work starts."""
    notes = [
        note
        for note in (
            plan.source.note,
            *plan.at_hand.notes,
            plan.engine.note,
            plan.dtype_note,
            plan.calibration_note,
            plan.bos_note,
            *plan.control_notes,
        )
        if note
    ]
    notes += _scoring_notes(plan)
    pending = plan.pending()
    weightless = plan.store.without_weights(pending)
    for key in (key for key in pending if key in weightless):
        notes.append(f"the weights of '{plan.stages[key].title}' were removed (--keep needed); it is run again")
    few = plan.too_few_ranks() - weightless
    for key in (key for key in pending if key in few):
        notes.append(f"'{plan.stages[key].title}' kept fewer ranks than these ratios need; it is run again")
    if limit := plan.config.evaluation.limit:
        notes.append(f"only the first {limit} problems are evaluated; the rows say so with their n")
    if dense := out_of_reach(plan.skeleton):
        notes.append(dense)
    placements = [stage.placement.why for stage in plan.stages.values() if stage.placement]
    notes += [f"trainings keep {why}" for why in dict.fromkeys(placements)]
    if plan.setup:
        notes.append(f"trainings run in {plan.setup.processes} processes by {plan.setup.strategy.upper()}")
        wholly = [key for key in plan.pending() if plan.stages[key].kind == "compress" and plan.stages[key].train]
        if wholly and plan.setup.strategy == "fsdp2":
            notes.append("methods that train while they compress do that by DDP: each process holds the whole model")
    return notes


def fit_warnings(plan: Plan) -> list[str]:
    """Return what finished finetunings, fits and corrections warn of, each sentence once."""
    warnings: dict[str, None] = {}
    for key, stage in plan.stages.items():
        if stage.kind in ("finetune", "fit") or (isinstance(stage, QuantiseStage) and stage.spec.correction):
            record = plan.store.record(key)
            if isinstance(record, FinetuneRecord | FitRecord | QuantiseRecord):
                warnings |= dict.fromkeys(record.result.warnings)
    return list(warnings)


def plan_seconds(plan: Plan) -> float:
    """Return the estimated wall-clock seconds of what is still to do."""
    seconds = stage_seconds(plan)
    workers, _ = divide_cores(plan.config.execution.workers, plan.device, plan.parameters, max(len(seconds), 1))
    return wall_seconds(plan, seconds, workers)


def _check_disk(plan: Plan) -> None:
    folder = plan.config.execution.folder
    while not folder.exists():
        folder = folder.parent
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be used ({error.strerror}); choose another with --out") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"the folder {folder} is read-only; choose another with --out")
    # Where nodes write to disks of their own, this machine gets what is small.
    elsewhere = plan.config.execution.executor == "ray" and plan.config.execution.storage
    needed = _SPARE_BYTES + (0 if elsewhere else disk_bytes(plan))
    if free < needed:
        resume_bytes = checkpoint_bytes(plan)
        least = needed if elsewhere or plan.config.execution.storage else _SPARE_BYTES + disk_bytes(plan, "needed")
        fewer = f", or --keep needed, with which it takes {least / 1e9:.1f} GB" if least < needed else ""
        fewer += (
            f", or --checkpoint-minutes inf, which leaves out {resume_bytes / 1e9:.1f} GB to resume from"
            if resume_bytes
            else ""
        )
        raise UserError(
            f"the sweep writes up to {needed / 1e9:.1f} GB but {folder} has {free / 1e9:.1f} GB free; free some "
            f"space or choose another folder with --out{fewer}"
        )
