"""Names of benchmarks that are tasks of lm-evaluation-harness: ``lm_eval:TASK[:shots=N][:chat]``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...foundation.errors import UserError

PREFIX = "lm_eval:"
_TASK = re.compile(r"[A-Za-z0-9_][\w.+-]*")
_EXAMPLE = "lm_eval:gsm8k, lm_eval:gsm8k:shots=8 or lm_eval:gsm8k:shots=8:chat"


@dataclass(frozen=True)
class TaskName:
    """What a benchmark's name says.

    Attributes:
        task: name of a task or group of the harness.
        shots: examples before each problem; None takes the task's own number.
        chat: whether prompts are rendered with the tokenizer's chat template, examples as turns of their own.
    """

    task: str
    shots: int | None = None
    chat: bool = False

    def __str__(self) -> str:
        shots = "" if self.shots is None else f":shots={self.shots}"
        return f"{PREFIX}{self.task}{shots}{':chat' if self.chat else ''}"


def is_harness_name(name: str) -> bool:
    """Return whether a benchmark's name asks for a task of the harness; ``lm-eval:`` does too."""
    return name.replace("-", "_", 1).startswith(PREFIX)


def parse_name(name: str) -> TaskName:
    """Read ``lm_eval:TASK[:shots=N][:chat]``.

    Raises:
        UserError: this is no such name.
    """
    task, *options = name[len(PREFIX) :].split(":")
    if not _TASK.fullmatch(task):
        raise UserError(f"'{name}' names no task of lm-evaluation-harness; write {_EXAMPLE}")
    shots, chat = None, False
    for option in options:
        key, _, value = option.partition("=")
        if option == "chat" and not chat:
            chat = True
        elif key == "shots" and re.fullmatch(r"\d{1,3}", value) and shots is None:
            shots = int(value)
        else:
            raise UserError(
                f"'{option}' in '{name}' is no setting of a task, or is given twice; there are shots=N (0 to 999) and "
                f"chat: {_EXAMPLE}"
            )
    return TaskName(task, shots, chat)
