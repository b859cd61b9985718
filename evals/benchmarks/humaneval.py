"""HumanEval: 164 Python functions to complete (Chen et al. 2021).

Before finetuning the model continues the prompt as it is, unstripped, zero-shot. After it the model gets the
finetuning prompt and may answer with a body, a whole function or a code block.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ...foundation.errors import UserError
from ..base import EvalSettings, benchmarks
from ..data.datasets import Rows
from ..grading.sandbox.programs import Job
from ..kinds.code import HUMANEVAL_STOPS, CodeBenchmark, function_program, tested_names
from ..kinds.generative import cached_rows, prompt_name
from ..tasks.prompts import finetuning_prompt

INSTRUCTION = "Complete the following Python function.\n"


@benchmarks.register("humaneval")
class HumanEval(CodeBenchmark):
    """pass@1, greedy."""

    def variant(self, settings: EvalSettings) -> str:
        """Name shots and prompt."""
        return f"humaneval-0shot-{prompt_name(settings)}" if settings.stage == "finetuned" else "humaneval-0shot"

    def data(self, settings: EvalSettings) -> Rows:
        """Return the problems."""
        return cached_rows("humaneval", "test", settings.data_dir)

    def prompts(self, rows: Sequence[Mapping[str, Any]], settings: EvalSettings) -> list[str]:
        """Return the problem's own prompt, or the finetuning prompt around it."""
        if settings.stage == "finetuned":
            return [finetuning_prompt(INSTRUCTION + row["prompt"], chat=settings.chat) for row in rows]
        return [row["prompt"] for row in rows]

    def stops(self, settings: EvalSettings) -> tuple[str, ...]:
        """A whole function must not be cut at its ``def``."""
        return ("\n### Instruction",) if settings.stage == "finetuned" else HUMANEVAL_STOPS

    def reference_row(self, gold: str) -> Mapping[str, Any]:
        """Return a problem of one function with these asserts and without a prompt."""
        return humaneval_row(gold)

    def job(self, row: Mapping[str, Any], text: str, settings: EvalSettings) -> Job:
        """Judge the completed function."""
        finetuned = settings.stage == "finetuned"
        program = function_program(row["prompt"], text, row["entry_point"]) if finetuned else row["prompt"] + text
        return humaneval_job(row, program)


def humaneval_job(row: Mapping[str, Any], program: str) -> Job:
    """Return the job of a program for a problem in HumanEval's fields.

    The test runs after the problem's prompt, whose helper functions some tests call; the function in question, which
    in the prompt is a bare docstring, is the candidate's.
    """
    test = f"{row['test']}\n\ncheck({row['entry_point']})\n"
    return Job(program, test, (row["entry_point"],), setup=row["prompt"])


def humaneval_row(asserts: str) -> dict[str, Any]:
    """Return a problem in HumanEval's fields that has no prompt, so that a completion is a whole program.

    Raises:
        UserError: asserts that are no Python, or that do not call exactly one function.
    """
    names = tested_names(asserts)
    if len(names) > 1:
        raise UserError(
            f"HumanEval's tests call one function, these asserts use {', '.join(names)}; use mbpp for several"
        )
    test = "def check(candidate):\n" + textwrap.indent(asserts, "    ")
    return {"task_id": "", "prompt": "", "entry_point": names[0], "test": test}
