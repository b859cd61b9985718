"""The evaluation of one checkpoint on one benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ...evals.base import Outcome, benchmarks
from ...evals.engines.base import Engine
from ...evals.hosting.choice import engine_version
from ...evals.hosting.host import HostedEngine
from ...evals.kinds.perplexity import PerplexityBenchmark
from ...foundation.progress import Report, in_units, reporting
from ...models.footprint import context_length
from ...models.loading import weights_size
from ..estimates.stage_peaks import evaluation_peak, recorded
from ..specs import EvaluateStage
from ..stage_results import EvaluateResult, Measurement, RecordedEngine, RecordedMemory
from .shared import skeleton_of


def open_engine(stage: EvaluateStage, longest: Callable[[Any, int], int], threads: int, tokenizer: Any) -> HostedEngine:
    """Load the model of an evaluate stage into its engine; see `HostedEngine` for the arguments and errors."""
    spec, model, device = stage.spec, stage.execution.model, stage.execution.device
    files = spec.engine, model.location, spec.dtype, device, model.revision or None
    return HostedEngine(*files, threads, longest=longest, tokenizer=tokenizer)


def evaluate_with(engine: Engine, stage: EvaluateStage, report: Report | None) -> Outcome:
    """Evaluate the benchmark of a stage by an engine that holds its model."""
    benchmark = benchmarks.get(stage.spec.benchmark)()
    unit = "windows" if isinstance(benchmark, PerplexityBenchmark) else "texts scored"
    if benchmark.is_generating(stage.settings):
        unit = "completions"
    with reporting(report):  # of what follows, such as running generated code
        return benchmark.evaluate(engine, stage.settings, in_units(report, unit))


def sample_lines(outcome: Outcome) -> Iterator[str]:
    """Yield the lines of a file of samples."""
    return (json.dumps(sample, ensure_ascii=False, sort_keys=True) + "\n" for sample in outcome.samples)


def evaluate(stage: EvaluateStage, folder: Path, report: Report | None) -> EvaluateResult:
    """Measure a model and write its samples."""
    spec, settings = stage.spec, stage.settings
    device, model = stage.execution.device, stage.execution.model
    benchmark = benchmarks.get(spec.benchmark)()
    benchmark.check(settings)
    skeleton, tokenizer = skeleton_of(stage)
    longest = benchmark.longest_sequence(tokenizer, settings, context_length(skeleton.config))
    memory = RecordedMemory()
    if spec.engine == "transformers":  # vLLM takes what it is given
        peak = evaluation_peak(skeleton, benchmark, settings, longest, spec.dtype, device)
        memory = recorded(peak)
    engine = open_engine(stage, lambda *_: longest, torch.get_num_threads(), tokenizer)
    with engine:
        outcome = evaluate_with(engine, stage, report)
    with open(folder / "samples.jsonl", "w", encoding="utf-8") as file:
        file.writelines(sample_lines(outcome))
    size = weights_size(model.location, model.revision)
    used = RecordedEngine(
        name=engine.engine,
        version=engine_version(engine.engine),
        peak_memory_bytes=engine.peak_memory_bytes,
        cpu_seconds=engine.cpu_seconds,
    )
    return EvaluateResult(
        **dict(Measurement.of(outcome, spec.variant)),
        engine=used,
        parameters=size.parameters,
        bytes=size.bytes,
        memory=memory,
    )
