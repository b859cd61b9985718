"""Doing one stage, whatever its kind."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...evals.tasks.files.opening import add_definition
from ...foundation.environment import number_formats
from ...foundation.errors import UserError
from ...foundation.progress import Report, reporting
from ..executors.parallel.launch import train_together
from ..specs import CompressStage, EvaluateStage, FinetuneStage, FitStage, QuantiseStage, RecoverStage, Stage
from .compress import compress
from .evaluate import evaluate
from .finetune import finetune
from .fit import fit
from .quantise import quantise
from .recover import recover


def perform(stage: Stage, folder: Path, report: Report | None = None) -> Mapping[str, Any]:
    """Do one stage inside ``folder``; returns plain data for its record.

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
    if stage.accelerate:
        return train_together(stage, folder, report)
    with reporting(report):
        return _by_kind(stage, folder, report)


def _by_kind(stage: Stage, folder: Path, report: Report | None) -> Mapping[str, Any]:
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
