"""One model on benchmarks: the evaluate stages of one cell, with one engine for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers
from rich.console import Console

from ..evals.base import Benchmark, EvalSettings, Outcome, benchmarks
from ..evals.engines.base import Engine
from ..evals.hosting.choice import SCORING_NOTE, choose_engine, engine_version
from ..evals.hosting.host import EngineCrashed, HostedEngine
from ..evals.tasks.files.benchmarks import task_files
from ..evals.tasks.lookup import benchmark_names
from ..foundation.errors import UserError
from ..foundation.files import check_new_folder, write_atomic, write_json
from ..foundation.progress import Progress
from ..models.checkpoint import announces_factors
from ..models.loading import load_skeleton
from ..models.matrices import model_size
from ..models.presets import ModelSource, resolve_model
from ..records.bos import bos_sentence, differ, variant_without
from .checks import bos_windows, check_model
from .choices import pick_device, pick_dtype
from .evaluation_stages import evaluate_stage, evaluation_name
from .executors.local import Event, divide_cores
from .finetuned_as import TEXT_NOTE, finetuned_as_text
from .progress import LOG_FILE, StageProgress
from .provenance import provenance
from .specs import EvaluateStage, Execution, ModelLocation
from .stage_results import Measurement
from .stages.evaluate import evaluate_with, open_engine, sample_lines
from .store.folders import verify_around
from .task_files import METRICS
from .tokenizers import PlanTokenizer, tokenizer_chat_rules, tokenizer_chats
from .training.data import DATA_SEED


def default_settings(**changes: Any) -> EvalSettings:
    """Return evaluation settings with the project's data seed."""
    return EvalSettings(**({"seed": DATA_SEED} | changes))


@dataclass(frozen=True)
class Evaluated:
    """What `evaluate` measured.

    Attributes:
        outcomes: by name, see `evaluation_name`.
        failures: why the others have none: `UserError`, or `EngineCrashed` where the engine's process ended.
        note: what a reader of the numbers should know; may be empty.
        dtype_note: why the dtype is not the checkpoint's own; empty where it is, or was asked for.
    """

    outcomes: dict[str, Outcome]
    failures: dict[str, Exception]
    note: str = ""
    dtype_note: str = ""

    @property
    def sentence(self) -> str:
        """What failed and why, in one sentence; empty if nothing did."""
        reasons = [str(error) for error in self.failures.values()]
        if not reasons or len(self.failures) + len(self.outcomes) == 1:
            return "".join(reasons)
        complete = f"; {', '.join(self.outcomes)} is complete" if self.outcomes else ""
        if len(set(reasons)) == 1:
            return f"{', '.join(self.failures)} failed: {reasons[0]}{complete}"
        return "; ".join(f"{name} failed: {error}" for name, error in self.failures.items()) + complete


def evaluate(
    model: str,
    names: Sequence[str],
    settings: EvalSettings = EvalSettings(),
    revision: str | None = None,
    engine: str = "auto",
    dtype: str = "auto",
    device: str = "auto",
    out: Path | None = None,
    progress: Progress | None = None,
    contexts: Sequence[int] | None = None,
    bos: Sequence[str] = ("auto",),
    console: Console | None = None,
    chat_template: str = "auto",
) -> Evaluated:
    """Evaluate one model or checkpoint on benchmarks, everything checked before the model is loaded.

    A benchmark that fails is among the failures; the others are measured, and written as soon as each is known.

    Args:
        model: preset, folder (dense or factorised) or hub id.
        names: benchmarks; a task's name means its benchmarks.
        settings: data, limit, stage, and so on.
        revision: of a hub model.
        engine, dtype, device: how it runs; the engine may be ``auto``, and so may the dtype: the checkpoint's own, but
            float32 where a CPU would emulate bfloat16.
        out: new folder for ``metrics.json`` and one ``samples-BENCHMARK.jsonl`` each, made with the first result.
        progress: called with (problems done, problems in all).
        contexts: windows of perplexities in tokens, or None for each benchmark's own.
        bos: whether windows of joined texts begin with a BOS: ``never``, ``always``, ``auto``; see `bos_windows`.
        chat_template: ``never``, or ``auto``: instructions are conversations where the tokenizer has a chat template,
            unless the model lies in a stage that was finetuned without.
        console: where lines, or on a terminal a progress bar, say what runs; None is silent. The lines are in
            ``run.log`` in ``out`` too.

    Raises:
        UserError: bad input, an existing ``out``, or a model that no engine loads.
    """
    if out is not None:
        out = out.expanduser().resolve()
        check_new_folder(out)
    transformers.utils.logging.disable_progress_bar()
    chosen = _choose(names, settings, contexts)
    verify_around(Path(model))
    source = resolve_model(model, revision)
    # Before the tokenizer is read: a broken folder is refused for its configuration.
    skeleton = load_skeleton(source.location, source.revision)
    as_text = chat_template == "auto" and tokenizer_chats(source) and finetuned_as_text(model)
    if chat_template == "auto" and tokenizer_chats(source) and not as_text:
        chosen = {name: (benchmark, replace(asked, chat=True)) for name, (benchmark, asked) in chosen.items()}
    bos_rule = bos_windows(bos, source, [benchmark for benchmark, _ in chosen.values()])
    for benchmark, asked in chosen.values():
        benchmark.check(asked)
    device = pick_device(device)
    compressed = announces_factors(skeleton.config)
    chosen = {
        evaluation_name(benchmark.name, asked.context, windows): (benchmark, settings_each)
        for benchmark, asked in chosen.values()
        for windows, settings_each in bos_rule.settings(benchmark, asked, compressed)
    }
    parameters = model_size(skeleton).parameters
    choice = choose_engine(engine, skeleton.config, parameters, device)
    config: Any = skeleton.config
    own = str(config.get_text_config().dtype).removeprefix("torch.")
    chosen_dtype = pick_dtype(None if dtype == "auto" else dtype, own, device)
    dtype = chosen_dtype.dtype if chosen_dtype.why else dtype
    check_model(source, skeleton.config, chosen.values())
    why = chosen_dtype.why
    model_location = ModelLocation(location=source.location, revision=source.revision)
    common = Execution(model=model_location, device=device, data=settings.data_dir)
    stages = {
        name: evaluate_stage(
            benchmark,
            asked,
            choice.engine_for(benchmark.is_generating(asked)),
            dtype,
            source.sha256,
            common,
            f"evaluate {name}",
            dtype_why=why,
            chat_rules=tokenizer_chat_rules(source) if asked.chat else 1,
        )
        for name, (benchmark, asked) in chosen.items()
    }
    scored_by_another = any(stage.spec.engine == choice.scoring for stage in stages.values())
    threads = divide_cores(None, device, parameters, 1)[1]

    def longest(tokenizer: Any, context: int) -> int:
        return max(benchmark.longest_sequence(tokenizer, asked, context) for benchmark, asked in chosen.values())

    def opened(stage: EvaluateStage) -> HostedEngine:
        return open_engine(stage, longest, threads, PlanTokenizer(source).read())

    results = _Results(source, dtype, why, stages, out, task_files(benchmark for benchmark, _ in chosen.values()))
    log = out / LOG_FILE if out else None
    named = {stage.key: stage for stage in stages.values()}
    with StageProgress(console or Console(quiet=True), named, {}, 1, log, False) as shown:
        for engine in dict.fromkeys(stage.spec.engine for stage in stages.values()):  # one after the other
            _run({n: s for n, s in stages.items() if s.spec.engine == engine}, results, opened, shown, progress)
    bos_note = bos_rule.note or ("" if compressed else _bos_note(results.outcomes.values()))
    scoring_note, text_note = SCORING_NOTE if scored_by_another else "", TEXT_NOTE if as_text else ""
    note = "; ".join(filter(None, (bos_note, scoring_note, text_note)))
    return Evaluated(results.outcomes, results.failures, note, why)


def _run(
    stages: dict[str, EvaluateStage],
    results: _Results,
    opened: Callable[[EvaluateStage], HostedEngine],
    shown: StageProgress,
    progress: Progress | None,
) -> None:
    """Evaluate benchmarks with one engine, and another of its kind after a crash."""
    with ExitStack() as stack:
        first = next(iter(stages.values()))
        shown.start(first)
        running: Engine | None = stack.enter_context(opened(first))
        for name, stage in stages.items():
            if stage is not first:
                shown.start(stage)
            try:
                running = running or stack.enter_context(opened(stage))
                results.add(name, evaluate_with(running, stage, shown.reporter(stage, progress)))
                shown.event(Event(stage.key, "done"), stage)
            except (UserError, EngineCrashed) as error:
                results.failures[name] = error
                if isinstance(error, EngineCrashed):
                    running = None  # its process is gone; the next benchmark gets another one
                shown.event(Event(stage.key, "failed", text=str(error)), stage)


def _bos_note(outcomes: Iterable[Outcome]) -> str:
    """Return what is to be said of values with and without BOS of one benchmark, or nothing where they agree."""
    values = {
        outcome.variant: (metric.name, metric.value)
        for outcome in outcomes
        for metric in outcome.metrics
        if metric.headline
    }
    sentences = [
        bos_sentence(variant, metric, value, values[without][1])
        for variant, (metric, value) in values.items()
        if (without := variant_without(variant)) and without in values and differ(metric, value, values[without][1])
    ]
    return "; ".join(sentences)


def _choose(
    names: Sequence[str], settings: EvalSettings, contexts: Sequence[int] | None
) -> dict[str, tuple[Benchmark, EvalSettings]]:
    """Return the benchmarks, once for each context, and how each is evaluated."""
    chosen: dict[str, tuple[Benchmark, EvalSettings]] = {}
    for name in benchmark_names(names):
        benchmark = benchmarks.get(name)()
        for context in contexts or (None,) if benchmark.has_context else (None,):
            chosen[evaluation_name(name, context)] = benchmark, replace(settings, context=context)
    if contexts and not any(asked.context for _, asked in chosen.values()):
        raise UserError(f"--context is for perplexities and none of {', '.join(chosen)} is one; leave it out")
    return chosen


class _Results:
    """Keeps what came out, each benchmark written as soon as it is known."""

    def __init__(
        self,
        source: ModelSource,
        dtype: str,
        dtype_why: str,
        stages: dict[str, EvaluateStage],
        out: Path | None,
        definitions: Sequence[str],
    ) -> None:
        self.stages, self.out = stages, out
        self.about: dict[str, Any] = {"model": source.name, "model_sha256": source.sha256, "dtype": dtype}
        if definitions:
            self.about["task_files"] = list(definitions)
        if dtype_why:
            self.about["dtype_why"] = dtype_why
        engines = {name: _about_engine(stage.spec.engine) for name, stage in stages.items()}
        # Where two engines share the benchmarks, each benchmark names its own.
        self.engines: dict[str, dict[str, Any]] = {name: {"engine": about} for name, about in engines.items()}
        if len({stage.spec.engine for stage in stages.values()}) == 1:
            self.about["engine"] = next(iter(engines.values()))
            self.engines = {name: {} for name in stages}
        self.outcomes: dict[str, Outcome] = {}
        self.failures: dict[str, Exception] = {}

    def add(self, name: str, outcome: Outcome) -> None:
        self.outcomes[name] = outcome
        if self.out is None:
            return
        write_atomic(self.out / f"samples-{name}.jsonl", "".join(sample_lines(outcome)))
        values = {
            name: Measurement.of(outcome, self.stages[name].spec.variant).model_dump() | self.engines[name]
            for name, outcome in self.outcomes.items()
        }
        write_json(self.out / METRICS, self.about | {"benchmarks": values, "provenance": provenance().plain()})


def _about_engine(name: str) -> dict[str, str]:
    return {"name": name, "version": engine_version(name)}
