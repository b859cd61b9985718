"""The stage that evaluates one model on one benchmark, and its name among those of the model."""

from __future__ import annotations

from dataclasses import replace

from ..evals.base import Benchmark, EvalSettings
from ..evals.harness.names import PREFIX
from ..evals.tasks.chat import is_chat_variant
from .specs import (
    EvaluateExecution,
    EvaluateSpec,
    EvaluateStage,
    Execution,
    ModelInput,
)


def evaluate_stage(
    benchmark: Benchmark,
    settings: EvalSettings,
    engine: str,
    dtype: str,
    model: str,
    common: Execution,
    title: str,
    by_size: bool = False,
    dtype_why: str = "",
    chat_rules: int = 1,
) -> EvaluateStage:
    """Return the stage that evaluates one model on one benchmark.

    Args:
        benchmark, settings: what is measured.
        engine, dtype: by what.
        model: identity of the model.
        common: where model and data lie, and the device.
        title: for people.
        by_size: the data are not at hand in a dry run.
        dtype_why: see `EvaluateExecution`.
        chat_rules: of the model's chat template, see `DataSpec`.
    """
    variant = benchmark.variant(settings)
    identity = {"limit": settings.limit} if by_size else dict(benchmark.identity(settings))
    if chat_rules != 1 and is_chat_variant(variant) and not benchmark.name.startswith(PREFIX):
        identity["chat_rules"] = chat_rules
    spec = EvaluateSpec(
        inputs=ModelInput(model=model),
        benchmark=benchmark.name,
        variant=variant,
        identity=identity,
        engine=engine,
        dtype=dtype,
    )
    execution = EvaluateExecution(
        **dict(common), settings=replace(settings, data_dir=None), dtype_why=dtype_why or None
    )
    return EvaluateStage(spec=spec, execution=execution, title=title)


def evaluation_name(benchmark: str, context: int | None = None, windows: str = "") -> str:
    """Return how an evaluation is called among those of one model: ``wikitext2``, ``wikitext2@512-no-bos``."""
    rest = "-".join(filter(None, [str(context or ""), windows]))
    return f"{benchmark}@{rest}" if rest else benchmark
