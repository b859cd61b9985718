"""One model, one verb: compress it into a folder, or evaluate it, outside any sweep."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from ..evals.base import Benchmark, EvalSettings, Outcome, benchmarks
from ..evals.hosting.choice import choose_engine, engine_version
from ..evals.hosting.host import HostedEngine
from ..evals.tasks import benchmark_names, get_task
from ..foundation.errors import UserError, unknown
from ..foundation.files import new_folder, write_json
from ..foundation.memory import peak_memory_bytes, reset_peak_memory
from ..foundation.progress import reporting
from ..methods.base import CompressionReport, Compressor
from ..methods.budget import Budget
from ..methods.policies.base import policies
from ..models.dtypes import SAVE_DTYPES, save_dtypes
from ..models.footprint import context_length
from ..models.loading import load_skeleton, load_tokenizer
from ..models.matrices import model_size
from ..models.notes import notes_of
from ..models.presets import ModelSource, resolve_model
from ..models.shards import save_model
from ..models.untouched import Untouched, untouched
from .config import MethodSpec
from .data import DATA_SEED, load_task_data
from .memory import Way, compress_way, fit_way, memory_rows, open_model
from .plan import build_method, merge_settings, pick_device, pick_recipe
from .provenance import provenance
from .recipes import RECIPES, Recipe
from .stages import verify_around
from .training import TaskTrainer, compress_order

Progress = Callable[[int, int], None]


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


def _prepare(request: CompressRequest) -> _Prepared:
    budget = Budget(request.ratio)  # an unusable ratio is refused before anything is loaded
    transformers.utils.logging.disable_progress_bar()
    verify_around(Path(request.model))
    source = resolve_model(request.model, request.revision)
    skeleton = load_skeleton(source.location, source.revision)
    recipe = RECIPES[pick_recipe(request.recipe, source, model_size(skeleton).parameters)]
    method = build_method(request.method, recipe, request.seed)
    if (method.fit_needs_data or method.compress_needs_data or method.trains) and request.task is None:
        raise UserError(f"method '{request.method.name}' needs task data; add --task, such as --task math")
    method.shape(skeleton, request.ratio)
    budget = Budget(request.ratio, method.guard)
    device = pick_device(request.device)
    length = None
    if request.task is not None:
        length = recipe.for_kind(get_task(request.task).kind)[1].max_length
    place = (source.location, source.revision, request.memory, device)
    ways = {"fit": fit_way(method, skeleton, *place, length), "compress": compress_way(method, skeleton, *place)}
    saves = recipe.saves(request.save_dtype, method.trains)
    if saves not in SAVE_DTYPES:
        raise unknown("dtype", saves, SAVE_DTYPES)
    return _Prepared(source, skeleton, recipe, method, budget, device, ways, saves)


def _check_memory(found: _Prepared, request: CompressRequest) -> list[str]:
    return [n for kind, way in found.ways.items() for n in way.check(f"{kind} of {request.method.shown}", found.device)]


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
            _, recover = recipe.for_kind(get_task(request.task).kind)
            settings = merge_settings(recover, {"steps": request.steps})
            read = method.calibration_task or request.task
            get_task(read)
            data = load_task_data(
                read,
                request.train_set if read == request.task else None,
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
            "seed": request.seed,
            "save_dtype": found.save_dtype,
            "stays_dense": [asdict(part) for part in kept],
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
) -> dict[str, Outcome]:
    """Evaluate one model or checkpoint on benchmarks, everything checked before the model is loaded.

    Args:
        model: preset, folder (dense or factorised) or hub id.
        names: benchmarks; a task's name stands for its benchmarks.
        settings: data, limit, stage, and so on.
        revision: of a hub model.
        engine, dtype, device: how it runs; the engine may be ``auto``.
        out: new folder for ``metrics.json`` and one ``samples-BENCHMARK.jsonl`` each, or None.
        progress: called with (problems done, problems in all).
        contexts: windows of perplexities in tokens, or None for each benchmark's own.

    Returns:
        What came out by benchmark, with ``@CONTEXT`` behind the name where a context was asked for.
    """
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
    for benchmark, each in chosen.values():
        benchmark.check(each)
    device = pick_device(device)
    skeleton = load_skeleton(source.location, source.revision)
    name_of_engine = choose_engine(engine, skeleton.config, model_size(skeleton).parameters, device).engine
    threads = torch.get_num_threads()

    def longest(tokenizer: Any, context: int) -> int:
        return max(benchmark.longest_sequence(tokenizer, each, context) for benchmark, each in chosen.values())

    outcomes = {}
    opening = (name_of_engine, source.location, dtype, device, source.revision or None, threads)
    with HostedEngine(*opening, longest=longest) as running:
        for name, (benchmark, each) in chosen.items():
            outcomes[name] = benchmark.evaluate(running, each, progress)
    if out is not None:
        with new_folder(out) as folder:
            for name, outcome in outcomes.items():
                lines = [json.dumps(sample, ensure_ascii=False, sort_keys=True) + "\n" for sample in outcome.samples]
                (folder / f"samples-{name}.jsonl").write_text("".join(lines), encoding="utf-8")
            write_json(
                folder / "metrics.json",
                {
                    "model": source.name,
                    "model_sha256": source.sha256,
                    "engine": {"name": name_of_engine, "version": engine_version(name_of_engine)},
                    "benchmarks": {
                        name: {
                            "variant": outcome.variant or chosen[name][0].variant(chosen[name][1]),
                            "metrics": [asdict(metric) for metric in outcome.metrics],
                            "dataset_sha256": outcome.dataset_sha256,
                            "prompt_sha256": outcome.prompt_sha256,
                            "details": outcome.details,
                        }
                        for name, outcome in outcomes.items()
                    },
                    "provenance": provenance(),
                },
            )
    return outcomes


def default_settings(**changes: Any) -> EvalSettings:
    """Return evaluation settings with the project's data seed."""
    return EvalSettings(**({"seed": DATA_SEED} | changes))
