"""How a model's instructions were written when it was finetuned, read from the stages that made it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ..evals.tasks.base import get_task
from ..foundation.errors import UserError
from ..foundation.files import read_json
from .store.files import RECORD, stage_around
from .task_files import know_task_of

TEXT_NOTE = (
    "this model was finetuned with --chat-template never, so its prompts are text here too; its original folder is "
    "evaluated with the chat template"
)


def finetuned_as_text(model: str) -> bool:
    """Return whether a folder's model was finetuned on instructions as text, which a chat template could have rendered.

    Args:
        model: as named by the user; only a folder within a finished stage has a record, others give False.
    """
    path = Path(model)
    stage = stage_around(path) if os.path.exists(path) else None
    while stage is not None and (stage / RECORD).is_file():
        record = read_json(stage / RECORD)
        know_task_of(stage)
        config = record.get("config", {})
        # Data of a stage that does not train are for calibration, and may be another task's.
        if config.get("train") and (data := config.get("data")):
            with suppress(UserError):  # the task is unknown here
                return get_task(str(data["task"])).instructs and not data.get("chat", False)
            return False
        key = str(record.get("inputs", {}).get("model", "")).partition("/")[0]
        stage = stage.parent / key if key else None
    return False
