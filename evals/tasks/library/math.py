"""Word problems and competition mathematics.

Answers are brought into one form, so that one rule reads the answers of a finetuned model whatever it was trained on:
the solution, then a last line ``The answer is: X``, which is how MetaMathQA ends. GSM8K's ``#### 5`` becomes that line
and its calculator marks (``<<48/2=24>>``) go; a MATH solution gets the content of its last ``\\boxed{}``, on one line.
"""

from __future__ import annotations

import re
from pathlib import Path

from ...data.datasets import load_rows
from ...grading.extract import last_boxed
from ..base import Example, Task
from ..prompts import finetuning_prompt

_CALCULATOR = re.compile(r"<<[^<>]*>>")


def gsm8k_answer(answer: str) -> str:
    """Rewrite a GSM8K answer for finetuning: no calculator marks, ``The answer is: N`` in place of ``#### N``."""
    solution, _, number = _CALCULATOR.sub("", answer).rpartition("####")
    return f"{solution.strip()}\nThe answer is: {number.strip().replace(',', '')}"


def math_answer(solution: str) -> str:
    """Rewrite a MATH solution for finetuning: the content of its last ``\\boxed{}`` as ``The answer is: X``."""
    boxed = last_boxed(solution)
    return solution if boxed is None else f"{solution.strip()}\nThe answer is: {' '.join(boxed.split())}"


def _metamathqa(data_dir: Path | None, seed: int) -> tuple[list[Example], str]:
    data = load_rows("metamathqa", "train", data_dir)
    return [Example(finetuning_prompt(r["query"]), r["response"]) for r in data.rows], data.source


def _gsm8k(data_dir: Path | None, seed: int) -> tuple[list[Example], str]:
    data = load_rows("gsm8k", "train", data_dir)
    return [Example(finetuning_prompt(r["question"]), gsm8k_answer(r["answer"])) for r in data.rows], data.source


def _gsm8k_and_math(data_dir: Path | None, seed: int) -> tuple[list[Example], str]:
    examples, origin = _gsm8k(data_dir, seed)
    data = load_rows("math", "train", data_dir)
    math_examples = [Example(finetuning_prompt(r["problem"]), math_answer(r["solution"])) for r in data.rows]
    return examples + math_examples, f"{origin}+{data.source}"


TASK = Task(
    "math",
    "word problems and competition mathematics",
    "instruction",
    ("gsm8k", "math"),
    512,
    {"metamathqa": _metamathqa, "gsm8k+math": _gsm8k_and_math, "gsm8k": _gsm8k},
    local_source="gsm8k+math",
)
