"""The finetuning after compression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...foundation.files import read_json
from ...foundation.progress import Report
from ..specs import RecoverStage
from ..store.folders import REPORT
from .shared import data_card, estimate_training, model_of, save_trained, skeleton_of, trainer_for, training_data


def recover(stage: RecoverStage, folder: Path, report: Report | None) -> Mapping[str, Any]:
    """Train a compressed model for what compression left of the budget; returns plain data for the record."""
    skeleton, tokenizer = skeleton_of(stage)
    data = training_data(stage, skeleton, tokenizer)
    memory = estimate_training(stage, data, skeleton)
    model = model_of(stage)
    compression = read_json(Path(stage.execution.model.location).parent / REPORT)
    trainer = trainer_for(stage, data, folder, report)
    spent = 0 if trainer.extra_steps else compression["steps"]
    log = trainer.train(model, max(trainer.total_steps - spent, 0), compression["recover_lr_scale"])
    save_trained(stage, trainer, model, tokenizer, folder)
    return {"training": asdict(log), "memory": memory} | data_card(data)
