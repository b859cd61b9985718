"""One model, one verb: compress it into a folder, or evaluate it, outside any sweep."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from ..evals.base import Benchmark, EvalSettings, Outcome, benchmarks, metric_to_plain
from ..evals.engines.base import Engine
from ..evals.hosting.choice import choose_engine, engine_version
from ..evals.hosting.host import EngineCrashed, HostedEngine
from ..evals.tasks.base import benchmark_names, get_task
from ..foundation.errors import UserError, unknown
from ..foundation.files import check_new_folder, new_folder, write_atomic, write_json
from ..foundation.memory import peak_memory_bytes, reset_peak_memory
from ..foundation.progress import Progress, reporting
from ..methods.base import CompressionReport, Compressor
from ..methods.ranks.budget import Budget
from ..methods.ranks.policies.base import policies
from ..models.dtypes import SAVE_DTYPES, save_dtypes
from ..models.footprint import context_length
from ..models.loading import load_skeleton, load_tokenizer
from ..models.matrices import model_size
from ..models.notes import notes_of
from ..models.presets import ModelSource, resolve_model
from ..models.shards import save_model
from ..models.untouched import Untouched, untouched
from .checks import begins_with_bos, check_model
from .choices import build_method, merge_settings, pick_device, pick_recipe
from .config import MethodSpec
from .estimates.machine import measure_machine
from .estimates.memory import Way, compress_way, fit_way, memory_rows, open_model
from .provenance import provenance
from .store.folders import verify_around
from .training.data import DATA_SEED, example_length, load_task_data
from .training.memory import TrainingPeak, training_peak
from .training.placement import choose_placement, optimizer_name, placed
from .training.recipes import RECIPES, Recipe
from .training.settings import Placement, TrainSettings
from .training.trainer import TaskTrainer, compress_order

_FIT_FOLDER = ".fit"
"""Where factors wait on disk while a large model is compressed."""


@dataclass(frozen=True)
class CompressRequest:
    """What `compress_model` needs to know; see the options of ``bench compress``."""

    model: str
    method: MethodSpec
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


@dataclass(frozen=True)
class Compressed:
    """What `compress_model` did: the method's report, and all that stays dense, the largest first."""

    report: CompressionReport
    dense: list[Untouched]
    warnings: list[str]


@dataclass(frozen=True)
class _Prepared:
    """What is settled before anything is loaded."""

    source: ModelSource
    skeleton: Any
    recipe: Recipe
    method: Compressor
    budget: Budget
    device: str
    ways: dict[str, Way]
    save_dtype: str
    settings: TrainSettings | None
    placement: str


def _prepare(request: CompressRequest) -> _Prepared:
    Budget(request.ratio, multiple=request.rank_multiple)  # what is unusable is refused before anything is loaded
    transformers.utils.logging.disable_progress_bar()
    verify_around(Path(request.model))
    source = resolve_model(request.model, request.revision)
    skeleton = load_skeleton(source.location, source.revision)
    recipe = RECIPES[pick_recipe(request.recipe, source, model_size(skeleton).parameters)]
    method = build_method(request.method, recipe, request.seed)
    if (method.fit_needs_data or method.compress_needs_data or method.trains) and request.task is None:
        raise UserError(f"method '{request.method.name}' needs task data; add --task, such as --task math")
    method.shape(skeleton, request.ratio)
    budget = Budget(request.ratio, method.guard, request.rank_multiple)
    device = pick_device(request.device)
    length, settings, why = None, None, ""
    if request.task is not None:
        _, recover = recipe.for_kind(get_task(request.task).kind, device)
        settings = merge_settings(recover, {"steps": request.steps})
        length = example_length(method.calibration_task or request.task, settings.max_length)
        if method.trains:
            settings, why = _place(settings, length, skeleton, method, device)
    place = (source.location, source.revision, request.memory, device)
    ways = {"fit": fit_way(method, skeleton, *place, length), "compress": compress_way(method, skeleton, *place)}
    saves = recipe.saves(request.save_dtype, method.trains)
    if saves not in SAVE_DTYPES:
        raise unknown("dtype", saves, SAVE_DTYPES)
    return _Prepared(source, skeleton, recipe, method, budget, device, ways, saves, settings, why)


def _place(
    settings: TrainSettings, length: int, skeleton: Any, method: Compressor, device: str
) -> tuple[TrainSettings, str]:
    """Return settings with the first placement on one device that fits, and why it is that one."""
    longest = min(length, context_length(skeleton.config))

    def peak(placement: Placement, processes: int) -> TrainingPeak:
        return training_peak(skeleton, settings, longest, device, placement, processes, method)

    choice = choose_placement(peak, measure_machine(device), optimizer=settings.optimizer, sharing=1)
    chosen = placed(settings, choice)
    optimizer_name(chosen)
    return chosen, choice.why


def _check_memory(found: _Prepared, request: CompressRequest) -> list[str]:
    notes = [f"the training keeps {found.placement}"] if found.placement else []
    for kind, way in found.ways.items():
        notes += way.check(f"{kind} of {request.method.shown}", found.device)
    return notes


def foresee(request: CompressRequest) -> tuple[str, list[tuple[str, ...]], list[str]]:
    """Return what `compress_model` would do, without doing it: a sentence, `memory_rows`, and warnings.

    Raises:
        UserError: whatever `compress_model` would refuse before it loads anything.
    """
    found = _prepare(request)
    shape = found.method.shape(found.skeleton, request.ratio)
    found.budget.allocate(shape, policies.get("uniform")())
    text = (
        f"{found.source.name} ({shape.parameters:,} parameters) by {request.method.shown} on {found.device}: at most "
        f"{shape.parameters / request.ratio:,.0f} parameters"
    )
    try:
        notes = _check_memory(found, request)
    except UserError as refusal:
        notes = [str(refusal)]
    return text, memory_rows(found.ways), notes


def compress_model(request: CompressRequest, progress: Progress | None = None) -> Compressed:
    """Compress one model as it is, without finetuning it, and write a factorised checkpoint.

    Methods that need data or train take them from ``request.task``. Beside the weights, ``compression.json`` says what
    was done, what stays dense and why.

    Raises:
        UserError: anything unusable, an existing output folder, or a missing task.
    """
    found = _prepare(request)
    source, recipe, method, device = found.source, found.recipe, found.method, found.device
    notes = _check_memory(found, request)
    with new_folder(request.out) as folder:
        tokenizer = load_tokenizer(source.location, source.revision)
        reset_peak_memory()
        model = open_model(found.ways["fit"], source.location, source.revision, device, folder)
        data = trainer = None
        if request.task is not None:
            assert found.settings is not None
            settings, read = found.settings, method.calibration_task or request.task
            get_task(read)
            data = load_task_data(
                read,
                recipe.train_set(read, request.train_set) if read == request.task else None,
                request.data,
                tokenizer,
                method.calibration_length or settings.max_length,
                context_length(model.config),
                request.seed,
                cut=not method.trains,
            )
            title = f"compress {request.method.shown} {request.ratio:g}x"
            trainer = TaskTrainer(data, settings, 0, device, compress_order(request.seed), title, progress)
        with reporting(progress):
            fitted = method.fit_for(found.budget, model, data, folder / _FIT_FOLDER)
        if found.ways["compress"].walk != found.ways["fit"].walk:
            del model
            model = open_model(found.ways["compress"], source.location, source.revision, device, folder)
        torch.manual_seed(request.seed)  # as each stage of a sweep does, so that the same configuration gives the same
        with reporting(progress):
            report = method.compress(model, fitted, found.budget, trainer if method.trains else None, data)
        warnings = [*fitted.meta.get("warnings", []), *notes_of(model), *notes]
        save_model(model, tokenizer, folder, save_dtypes(found.save_dtype, source.location, source.revision))
        shutil.rmtree(folder / _FIT_FOLDER, ignore_errors=True)
        kept = untouched(model, report.dense)
        origin = {
            "model": source.name,
            "model_sha256": source.sha256,
            "method_name": request.method.name,
            "method": method.model_dump(mode="json"),
            "label": request.method.shown,
            "task": request.task or "",
            "ratio_target": request.ratio,
            "rank_multiple": request.rank_multiple,
            "seed": request.seed,
            "save_dtype": found.save_dtype,
            "stays_dense": [asdict(part) for part in kept],
            "calibration_length": data.length if data and method.fit_needs_data else None,
            "added_jitter": fitted.meta.get("added_jitter", {}),
            "warnings": warnings,
            "memory": {kind: way.record() for kind, way in found.ways.items()} | {"peak_bytes": peak_memory_bytes()},
        }
        write_json(folder / "compression.json", report.summary() | origin | {"provenance": provenance()})
    return Compressed(report, kept, warnings)


def evaluate_model(
    model: str,
    names: Sequence[str],
    settings: EvalSettings,
    revision: str | None = None,
    engine: str = "auto",
    dtype: str = "auto",
    device: str = "auto",
    out: Path | None = None,
    progress: Progress | None = None,
    contexts: Sequence[int] | None = None,
    bos: str = "never",
) -> Evaluated:
    """Evaluate one model or checkpoint on benchmarks, everything checked before the model is loaded.

    A benchmark that fails is among the failures; the others are measured, and written as soon as each is known.

    Args:
        model: preset, folder (dense or factorised) or hub id.
        names: benchmarks; a task's name stands for its benchmarks.
        settings: data, limit, stage, and so on.
        revision: of a hub model.
        engine, dtype, device: how it runs; the engine may be ``auto``.
        out: new folder for ``metrics.json`` and one ``samples-BENCHMARK.jsonl`` each, made with the first result.
        progress: called with (problems done, problems in all).
        contexts: windows of perplexities in tokens, or None for each benchmark's own.
        bos: whether windows of joined texts begin with a BOS: ``never``, ``always`` or ``auto``, see `begins_with_bos`.

    Raises:
        UserError: bad input, an existing ``out``, or a model that no engine loads.
    """
    if out is not None:
        out = out.expanduser().resolve()
        check_new_folder(out)
    transformers.utils.logging.disable_progress_bar()
    chosen: dict[str, tuple[Benchmark, EvalSettings]] = {}
    for name in benchmark_names(names):
        benchmark = benchmarks.get(name)()
        for context in contexts or (None,) if benchmark.has_context else (None,):
            place = f"{name}@{context}" if context else name
            chosen[place] = benchmark, replace(settings, context=context)
    if contexts and not any(each.context for _, each in chosen.values()):
        raise UserError(f"--context is for perplexities and none of {', '.join(chosen)} is one; leave it out")
    verify_around(Path(model))
    source = resolve_model(model, revision)
    each_bos, note = begins_with_bos(bos, source, list({b.name: b for b, _ in chosen.values()}.values()))
    chosen = {name: (benchmark, replace(each, bos=each_bos)) for name, (benchmark, each) in chosen.items()}
    for benchmark, each in chosen.values():
        benchmark.check(each)
    device = pick_device(device)
    skeleton = load_skeleton(source.location, source.revision)
    name_of_engine = choose_engine(engine, skeleton.config, model_size(skeleton).parameters, device).engine
    check_model(source, skeleton.config, chosen.values())
    found = _Results(source, name_of_engine, chosen, out)
    threads = torch.get_num_threads()

    def longest(tokenizer: Any, context: int) -> int:
        return max(benchmark.longest_sequence(tokenizer, each, context) for benchmark, each in chosen.values())

    opening = (name_of_engine, source.location, dtype, device, source.revision or None, threads)
    with ExitStack() as stack:
        running: Engine | None = stack.enter_context(HostedEngine(*opening, longest=longest))
        for name, (benchmark, each) in chosen.items():
            try:
                if running is None:
                    running = stack.enter_context(HostedEngine(*opening, longest=longest))
                found.add(name, benchmark.evaluate(running, each, progress))
            except UserError as error:
                found.failures[name] = error
            except EngineCrashed as error:
                found.failures[name] = error
                running = None  # its process is gone; the next benchmark gets another one
    return Evaluated(found.outcomes, found.failures, note)


@dataclass(frozen=True)
class Evaluated:
    """What `evaluate_model` found.

    Attributes:
        outcomes: by benchmark, with ``@CONTEXT`` behind the name where a context was asked for.
        failures: why the others have none: `UserError`, or `EngineCrashed` where the engine's process ended.
        note: what a reader of the numbers should know; may be empty.
    """

    outcomes: dict[str, Outcome]
    failures: dict[str, Exception]
    note: str = ""

    @property
    def sentence(self) -> str:
        """What failed and why, in one sentence; empty if nothing did."""
        reasons = [str(error) for error in self.failures.values()]
        if not reasons or len(self.failures) + len(self.outcomes) == 1:
            return "".join(reasons)
        kept = f"; {', '.join(self.outcomes)} is complete" if self.outcomes else ""
        if len(set(reasons)) == 1:
            return f"{', '.join(self.failures)} failed: {reasons[0]}{kept}"
        return "; ".join(f"{name} failed: {error}" for name, error in self.failures.items()) + kept


class _Results:
    """Keeps what came out, each benchmark written as soon as it is known."""

    def __init__(
        self, source: ModelSource, engine: str, chosen: dict[str, tuple[Benchmark, EvalSettings]], out: Path | None
    ) -> None:
        self.chosen, self.out = chosen, out
        self.about = {
            "model": source.name,
            "model_sha256": source.sha256,
            "engine": {"name": engine, "version": engine_version(engine)},
        }
        self.outcomes: dict[str, Outcome] = {}
        self.failures: dict[str, Exception] = {}

    def add(self, name: str, outcome: Outcome) -> None:
        self.outcomes[name] = outcome
        if self.out is None:
            return
        lines = [json.dumps(sample, ensure_ascii=False, sort_keys=True) + "\n" for sample in outcome.samples]
        write_atomic(self.out / f"samples-{name}.jsonl", "".join(lines))
        benchmarks = {name: self._plain(name, outcome) for name, outcome in self.outcomes.items()}
        write_json(self.out / "metrics.json", self.about | {"benchmarks": benchmarks, "provenance": provenance()})

    def _plain(self, name: str, outcome: Outcome) -> dict[str, Any]:
        benchmark, settings = self.chosen[name]
        return {
            "variant": outcome.variant or benchmark.variant(settings),
            "metrics": [metric_to_plain(metric) for metric in outcome.metrics],
            "dataset_sha256": outcome.dataset_sha256,
            "prompt_sha256": outcome.prompt_sha256,
            "details": outcome.details,
        }


def default_settings(**changes: Any) -> EvalSettings:
    """Return evaluation settings with the project's data seed."""
    return EvalSettings(**({"seed": DATA_SEED} | changes))
