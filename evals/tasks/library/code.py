"""Python functions that pass their tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...data.datasets import load_rows
from ..base import Example, Task
from ..prompts import finetuning_prompt

MBPP_INSTRUCTION = "{text}\nYour code should pass these tests:\n{tests}"
"""Instruction of MBPP tasks for finetuned models, in training and evaluation; after Austin et al. 2021."""


def mbpp_instruction(row: dict[str, Any]) -> str:
    """Return the instruction of an MBPP task: its text and its three tests, as the published prompt shows them."""
    return MBPP_INSTRUCTION.format(text=row["text"].strip(), tests="\n".join(row["test_list"]))


def unix(code: str) -> str:
    """Normalise line ends; MBPP's gold code has ``\\r\\n``."""
    return code.replace("\r\n", "\n")


def _codealpaca(data_dir: Path | None, seed: int) -> tuple[list[Example], str]:
    data = load_rows("codealpaca", "train", data_dir)
    pairs = [("\n".join(filter(None, (r["instruction"], r["input"]))), r["output"]) for r in data.rows]
    return [Example(finetuning_prompt(i), unix(o)) for i, o in pairs if i.strip() and o.strip()], data.source


def _mbpp(data_dir: Path | None, seed: int) -> tuple[list[Example], str]:
    data = load_rows("mbpp", "train", data_dir)
    return [Example(finetuning_prompt(mbpp_instruction(r)), unix(r["code"])) for r in data.rows], data.source


TASK = Task(
    "code",
    "Python functions that pass their tests",
    "instruction",
    ("humaneval", "mbpp"),
    512,
    {"codealpaca": _codealpaca, "mbpp": _mbpp},
    local_source="mbpp",
)
