"""From a model and a fit to a factorised checkpoint for each ratio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...foundation.progress import Report
from ...methods.base import CompressionReport, NotFinite, create_method
from ...methods.fitted import Fitted
from ...methods.ranks.budget import Budget
from ...models.shards import save_model
from ..estimates.memory import calibration_of, compress_mode
from ..specs import CompressStage
from ..stage_results import CompressResult, RecordedReport, RecordedTraining
from ..store.folders import MODEL_FOLDER, ratio_folder
from ..store.report_file import read_report, write_report
from ..training.divergence import Diverged, advice, require_finite
from ..training.sharding import is_main
from .shared import (
    choose_mode,
    dtypes_of,
    estimate_training,
    open_for,
    read_data,
    skeleton_of,
    trainer_for,
)


def compress(stage: CompressStage, folder: Path, report: Report | None) -> CompressResult:
    """Compress a model to the stage's ratios and write the checkpoints."""
    spec, method = stage.spec, create_method(stage.spec.method, stage.spec.options)
    skeleton, tokenizer = skeleton_of(stage)
    data = read_data(stage, skeleton, tokenizer)
    mode, _ = choose_mode(stage, compress_mode, method, ratios=spec.ratios, passes=calibration_of(method, data))
    memory = mode.record()
    if spec.train is not None:
        assert data is not None
        memory = estimate_training(stage, data, skeleton, method).model_copy(update={"why": mode.why})
    model, fitted = open_for(stage, mode, folder), Fitted.load(stage.execution.fit)
    trainer = trainer_for(stage, data, folder, report, method) if data and spec.train else None
    budgets = [Budget(ratio, method.guard, spec.rank_multiple) for ratio in spec.ratios]

    def emit(budget: Budget, compressed: Any, report: CompressionReport) -> None:
        if not is_main():
            return
        if spec.train is not None:
            after = f"{report.steps} steps of {stage.title}"
            require_finite(compressed, after, spec.train.learning_rate, report.steps, report.tokens)
        target = folder / ratio_folder(budget.ratio)
        save_model(compressed, tokenizer, target / MODEL_FOLDER, dtypes_of(stage))
        write_report(report, target)

    try:
        method.compress_path(model, fitted, budgets, trainer, emit, data)
    except NotFinite as error:
        if spec.train is None:
            raise
        sentence = f"{error} of {stage.title}; {advice(spec.train.learning_rate)}"
        raise Diverged(sentence, error.steps, error.tokens) from error
    # From the files, for some may be older than this process.
    reports = {
        f"{budget.ratio:g}": RecordedReport.of(read_report(folder / ratio_folder(budget.ratio)))
        for budget in budgets
        if is_main()
    }
    return CompressResult(
        reports=reports,
        memory=memory,
        training=RecordedTraining.of(trainer.log) if trainer and trainer.log else None,
        calibration=data.reading() if data else {},
        data_card=data.card if data else None,
    )
