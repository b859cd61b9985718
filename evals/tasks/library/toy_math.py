"""Generated two-step word problems in GSM8K's own form."""

from __future__ import annotations

from pathlib import Path

from ..base import Example, Task
from ..prompts import finetuning_prompt
from ..toy.math import TRAIN_PROBLEMS, toy_math_problems


def _generated(data_dir: Path | None, seed: int) -> tuple[list[Example], str]:
    rows = toy_math_problems("train", TRAIN_PROBLEMS, seed)
    return [Example(finetuning_prompt(r["question"], "question"), r["answer"]) for r in rows], f"generated:{seed}"


TASK = Task(
    "toy-math",
    "generated two-step word problems in GSM8K's format",
    "instruction",
    ("toy-math",),
    256,
    {"generated": _generated},
)
