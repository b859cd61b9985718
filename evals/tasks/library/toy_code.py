"""Generated one-line functions in HumanEval's format."""

from __future__ import annotations

from pathlib import Path

from ..base import Example, Task
from ..prompts import finetuning_prompt
from ..toy.code import TRAIN_PROBLEMS, toy_code_problems


def _generated(data_dir: Path | None, seed: int) -> tuple[list[Example], str]:
    rows = toy_code_problems("train", TRAIN_PROBLEMS, seed)
    return [
        Example(finetuning_prompt(r["prompt"], "plain"), r["canonical_solution"]) for r in rows
    ], f"generated:{seed}"


TASK = Task(
    "toy-code",
    "generated one-line functions in HumanEval's format",
    "instruction",
    ("toy-code",),
    256,
    {"generated": _generated},
)
