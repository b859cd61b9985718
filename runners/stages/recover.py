"""The finetuning after compression."""

from __future__ import annotations

import math
from pathlib import Path

from ...foundation.errors import UserError
from ...foundation.progress import Report
from ...methods.base import TrainingLog
from ...methods.recoveries.base import create_recovery
from ..specs import RecoverStage
from ..stage_results import RecordedRecovery, RecordedTraining, TrainingResult
from ..store.report_file import read_report
from ..training.divergence import Diverged
from ..training.held_out import mean_loss, split_held_out
from ..training.sharding import shards
from .shared import estimate_training, model_of, save_trained, skeleton_of, trainer_for, training_data


def recover(stage: RecoverStage, folder: Path, report: Report | None) -> TrainingResult:
    """Train a compressed model for what compression left of the budget."""
    recovery = create_recovery(stage.spec.recovery, stage.spec.recovery_options)
    recovery.check()
    compressed = Path(stage.execution.model.location)
    if stage.spec.data.held_out and not compressed.is_dir():
        raise Diverged(
            "there is no model to train: the training while compressing diverged at this learning rate", 0, 0
        )
    if shards() and not recovery.trains_sharded:
        raise UserError(
            f"the recovery {recovery.name} needs the whole model in every process; use DDP, or --recovery full"
        )
    skeleton, tokenizer = skeleton_of(stage)
    every, share = training_data(stage, skeleton, tokenizer, whole=True), stage.spec.data.held_out
    data, held_out = split_held_out(every, share) if share else (every, None)
    memory = estimate_training(stage, data, skeleton, recovery=recovery)
    model = model_of(stage)
    compression = read_report(compressed.parent)
    trainer = trainer_for(stage, data, folder, report, recovery)
    # Steps while compressing come out of the common budget, unless the method got its own on top of it.
    spent = 0 if trainer.extra_steps else compression.steps
    steps = max(trainer.total_steps - spent, 0)
    phases = recovery.recover(model, trainer, steps, compression.recover_lr_scale, stage.spec.seed)
    whole = save_trained(stage, trainer, model, tokenizer, folder)
    log = trainer.log or TrainingLog(0, 0, 0.0, math.nan)
    loss = None
    if held_out is not None and whole is not None:
        wide = stage.spec.train.precision != "float32"
        loss = mean_loss(whole, held_out, stage.spec.train.micro_batch_size, wide)
    return TrainingResult(
        training=RecordedTraining.of(log),
        recovery=RecordedRecovery.of(recovery.name, phases),
        memory=memory,
        data_card=data.card,
        held_out=loss,
    )
