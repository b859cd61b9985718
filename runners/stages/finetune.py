"""The finetuning before compression."""

from __future__ import annotations

from pathlib import Path

from ...foundation.progress import Report
from ...models.notes import notes_of
from ..specs import FinetuneStage
from ..stage_results import RecordedTraining, TrainingResult
from .shared import estimate_training, model_of, save_trained, skeleton_of, trainer_for, training_data


def finetune(stage: FinetuneStage, folder: Path, report: Report | None) -> TrainingResult:
    """Train a model on the task and write it."""
    skeleton, tokenizer = skeleton_of(stage)
    data = training_data(stage, skeleton, tokenizer)
    memory = estimate_training(stage, data, skeleton)
    model = model_of(stage)
    trainer = trainer_for(stage, data, folder, report)
    log = trainer.train(model, trainer.total_steps)
    save_trained(stage, trainer, model, tokenizer, folder)
    return TrainingResult(
        training=RecordedTraining.of(log),
        examples=len(data.items),
        dropped=data.dropped,
        warnings=(*notes_of(model), *([memory.warning] if memory.warning else [])),
        memory=memory,
        data_card=data.card,
    )
