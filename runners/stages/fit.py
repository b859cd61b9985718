"""What a method computes once for all ratios."""

from __future__ import annotations

from pathlib import Path

from ...methods.base import create_method
from ...methods.calibration.precision import passes_in
from ...methods.estimates import fitter
from ...methods.ranks.budget import Budget
from ...models.notes import notes_of
from ..estimates.memory import calibration_of, fit_mode
from ..specs import FitStage
from ..stage_results import FitResult
from .shared import choose_mode, open_for, read_data, skeleton_of


def fit(stage: FitStage, folder: Path) -> FitResult:
    """Fit a method and write its factors."""
    method = create_method(stage.execution.method, stage.execution.options)
    skeleton, tokenizer = skeleton_of(stage)
    data = read_data(stage, skeleton, tokenizer)
    passes, dtype = calibration_of(fitter(method), data), stage.spec.calibration_dtype
    mode, notes = choose_mode(stage, fit_mode, method, passes=passes, dtype=dtype, kept_ranks=stage.execution.ranks)
    model = open_for(stage, mode, folder)
    with passes_in(stage.spec.calibration_dtype):
        if only := stage.spec.budget:
            fitted = method.fit_for(Budget(only.ratio, method.guard, only.rank_multiple), model, data, folder)
        else:
            fitted = method.fit_to(stage.execution.ranks or {}, model, data, folder)
    fitted.save(folder)
    return FitResult(
        matrices=len(method.targets(model)),
        dropped=data.dropped if data else 0,
        calibration=data.reading() if data else {},
        added_jitter=fitted.meta.get("added_jitter", {}),
        warnings=(*fitted.meta.get("warnings", []), *notes_of(model), *notes),
        memory=mode.record(),
        data_card=data.card if data else None,
    )
