"""Doing one stage, whatever its kind."""

from __future__ import annotations

import math
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from ...evals.tasks.files.opening import add_definition
from ...foundation.environment import number_formats
from ...foundation.errors import UserError
from ...foundation.progress import Report, reporting
from ..executors.parallel.launch import train_together
from ..specs import CompressStage, EvaluateStage, FinetuneStage, FitStage, QuantiseStage, RecoverStage, Stage
from ..stage_results import CompressResult, RecordedTraining, StageResult, TrainingResult
from ..training.divergence import Diverged
from .compress import compress
from .evaluate import evaluate
from .finetune import finetune
from .fit import fit
from .quantise import quantise
from .recover import recover


def perform(stage: Stage, folder: Path, report: Report | None = None) -> StageResult:
    """Do one stage inside ``folder``, here or in processes that train together.

    A training of a tuned sweep whose loss becomes infinite or NaN is complete without a model: its learning rate is not
    chosen. Any other such training fails.

    Raises:
        UserError: see `perform_here`.
    """
    try:
        return train_together(stage, folder, report) if stage.accelerate else perform_here(stage, folder, report)
    except Diverged as error:
        if not (isinstance(stage, CompressStage | RecoverStage) and stage.data and stage.data.held_out):
            raise
        for left in folder.iterdir():
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()
        used = RecordedTraining(steps=error.steps, tokens=error.tokens, seconds=0.0, loss=math.nan)
        if isinstance(stage, CompressStage):
            return CompressResult(reports={}, training=used, diverged=str(error))
        return TrainingResult(training=used, diverged=str(error))


def perform_here(stage: Stage, folder: Path, report: Report | None = None) -> StageResult:
    """Do one stage, or this process's share of it, inside ``folder``.

    Raises:
        UserError: among others, an environment that asks for other number formats than the one that planned the stage.
    """
    planned, here = stage.spec.environment, number_formats()
    if planned != here:
        raise UserError(
            f"the sweep was planned with {_listed(planned)} in the environment and this worker on "
            f"{platform.node()} has {_listed(here)}; these variables change numbers, so set the same on all machines"
        )
    if stage.execution.task_file:
        add_definition(stage.execution.task_file)
    torch.manual_seed(getattr(stage.spec, "seed", None) or 0)
    with reporting(report):
        return _by_kind(stage, folder, report)


def _by_kind(stage: Stage, folder: Path, report: Report | None) -> StageResult:
    if isinstance(stage, FinetuneStage):
        return finetune(stage, folder, report)
    if isinstance(stage, FitStage):
        return fit(stage, folder)
    if isinstance(stage, CompressStage):
        return compress(stage, folder, report)
    if isinstance(stage, RecoverStage):
        return recover(stage, folder, report)
    if isinstance(stage, QuantiseStage):
        return quantise(stage, folder)
    assert isinstance(stage, EvaluateStage)
    return evaluate(stage, folder, report)


def _listed(variables: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in variables.items()) or "no variable for number formats"
