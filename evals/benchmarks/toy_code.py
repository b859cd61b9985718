"""Generated one-line Python functions in HumanEval's format, for small models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...foundation.files import digest
from ..base import EvalSettings, benchmarks
from ..data.datasets import Rows
from ..grading.sandbox.programs import Job
from ..kinds.code import HUMANEVAL_STOPS, CodeBenchmark
from ..tasks.prompts import finetuning_prompt
from ..tasks.toy.code import TEST_PROBLEMS, toy_code_problems
from .humaneval import humaneval_job, humaneval_row


@benchmarks.register("toy-code")
class ToyCode(CodeBenchmark):
    """250 problems; pass@1, greedy."""

    new_tokens = 64

    def variant(self, settings: EvalSettings) -> str:
        """Both stages get the same prompt."""
        return f"toy-code-{TEST_PROBLEMS}-0shot"

    def data(self, settings: EvalSettings) -> Rows:
        """Generate the test split from the seed."""
        rows: list[dict[str, Any]] = [*toy_code_problems("test", TEST_PROBLEMS, settings.seed)]
        return Rows(rows, digest(rows), f"generated:{settings.seed}")

    def prompts(self, rows: Sequence[Mapping[str, Any]], settings: EvalSettings) -> list[str]:
        """Return the function's beginning."""
        return [finetuning_prompt(row["prompt"], "plain") for row in rows]

    def stops(self, settings: EvalSettings) -> tuple[str, ...]:
        """End where the function ends."""
        return HUMANEVAL_STOPS

    def reference_row(self, gold: str) -> Mapping[str, Any]:
        """Return a problem of one function with these asserts and without a prompt."""
        return humaneval_row(gold)

    def job(self, row: Mapping[str, Any], text: str, settings: EvalSettings) -> Job:
        """Judge the completed function."""
        return humaneval_job(row, row["prompt"] + text)
