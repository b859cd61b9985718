"""The evaluation of one checkpoint on one benchmark."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...evals.base import benchmarks, metric_to_plain
from ...evals.hosting.choice import engine_version
from ...evals.hosting.host import HostedEngine
from ...foundation.progress import Progress
from ...models.footprint import context_length
from ...models.loading import weights_size
from ..estimates.foreseen import evaluation_peak, plain
from ..specs import EvaluateStage
from .shared import skeleton_of


def evaluate(stage: EvaluateStage, folder: Path, progress: Progress | None) -> Mapping[str, Any]:
    """Measure a model and write its samples; returns plain data for the record."""
    spec, settings = stage.spec, stage.settings
    device, model = stage.execution.device, stage.execution.model
    benchmark = benchmarks.get(spec.benchmark)()
    benchmark.check(settings)
    skeleton, tokenizer = skeleton_of(stage)
    longest = benchmark.longest_sequence(tokenizer, settings, context_length(skeleton.config))
    memory = {}
    if spec.engine == "transformers":  # vLLM takes what it is given
        peak = evaluation_peak(skeleton, benchmark, settings, longest, spec.dtype, device)
        memory = {"memory": plain(peak)}
    engine = HostedEngine(
        spec.engine,
        model.location,
        spec.dtype,
        device,
        model.revision or None,
        torch.get_num_threads(),
        longest=lambda *_: longest,
    )
    with engine:
        outcome = benchmark.evaluate(engine, settings, progress)
    lines = (json.dumps(sample, ensure_ascii=False, sort_keys=True) + "\n" for sample in outcome.samples)
    with open(folder / "samples.jsonl", "w", encoding="utf-8") as file:
        file.writelines(lines)
    size = weights_size(model.location, model.revision)
    return {
        "metrics": [metric_to_plain(metric) for metric in outcome.metrics],
        "dataset_sha256": outcome.dataset_sha256,
        "prompt_sha256": outcome.prompt_sha256,
        "details": outcome.details,
        "variant": outcome.variant or spec.variant,
        "engine": {
            "name": engine.engine,
            "version": engine_version(engine.engine),
            "peak_memory_bytes": engine.peak_memory_bytes,
        },
        "parameters": size.parameters,
        "bytes": size.bytes,
        **memory,
    }
