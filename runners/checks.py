"""What is checked of a model and the chosen benchmarks before any work starts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..evals.base import Benchmark, EvalSettings
from ..models.footprint import context_length
from ..models.loading import load_tokenizer
from ..models.presets import ModelSource


def check_model(source: ModelSource, config: Any, chosen: Iterable[tuple[Benchmark, EvalSettings]]) -> None:
    """Raise a `UserError` if a benchmark cannot measure this model, such as one whose prompts are all too long.

    Args:
        source: the model.
        config: its configuration.
        chosen: benchmarks and how each would be evaluated.
    """
    tokenizer = load_tokenizer(source.location, source.revision)
    for benchmark, settings in chosen:
        benchmark.check_model(settings, tokenizer, context_length(config))
