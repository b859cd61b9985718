"""A training that begins with a later batch of the data's order: to transformers' Trainer it looks resumed."""

from __future__ import annotations

import os

import transformers
from transformers.trainer_callback import ExportableState

_FOLDER = "begins-later"


def begin_later(trainer: transformers.Trainer, start: int, folder: str) -> str:
    """Write the state of a training that has done some steps, without weights or moments, and return its folder.

    Args:
        trainer: that will begin; its ``max_steps`` are those before it and its own.
        start: steps before it.
        folder: where the state may lie.
    """
    path = os.path.join(folder, _FOLDER)
    os.makedirs(path, exist_ok=True)
    parts = [*trainer.callback_handler.callbacks, trainer.control]
    state = transformers.TrainerState(
        global_step=start,
        train_batch_size=trainer.args.train_batch_size,
        stateful_callbacks=[part for part in parts if isinstance(part, ExportableState)],
    )
    state.compute_steps(trainer.args, trainer.args.max_steps)
    state.save_to_json(os.path.join(path, "trainer_state.json"))
    return path


def begins_later(checkpoint: str) -> bool:
    """Return whether a folder is of `begin_later`, and no checkpoint."""
    return os.path.basename(checkpoint) == _FOLDER
