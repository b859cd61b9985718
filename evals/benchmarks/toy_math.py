"""Generated two-step word problems in GSM8K's format, for small models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...foundation.files import digest
from ..base import EvalSettings, benchmarks
from ..data.datasets import Rows
from ..kinds.answers import NumberBenchmark
from ..tasks.prompts import finetuning_prompt
from ..tasks.toy.math import TEST_PROBLEMS, toy_math_problems


@benchmarks.register("toy-math")
class ToyMath(NumberBenchmark):
    """250 problems; the headline is `strict`, since finetuning teaches the ending ``#### N``."""

    new_tokens = 96

    def variant(self, settings: EvalSettings) -> str:
        """Both stages get the same prompt: the untrained model's score shows what finetuning adds."""
        return f"toy-math-{TEST_PROBLEMS}-0shot" + ("-chat" if settings.chat else "")

    def headline(self, settings: EvalSettings) -> str:
        """Return the headline's reading."""
        return "strict"

    def data(self, settings: EvalSettings) -> Rows:
        """Generate the test split from the seed."""
        rows: list[dict[str, Any]] = [*toy_math_problems("test", TEST_PROBLEMS, settings.seed)]
        return Rows(rows, digest(rows), f"generated:{settings.seed}")

    def prompts(self, rows: Sequence[Mapping[str, Any]], settings: EvalSettings) -> list[str]:
        """Return the finetuning prompt of each problem."""
        return [finetuning_prompt(row["question"], "question", settings.chat) for row in rows]

    def stops(self, settings: EvalSettings) -> tuple[str, ...]:
        """A next question would only repeat the format."""
        return ("Question:",)
