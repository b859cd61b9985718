"""GSM8K: 1,319 grade-school word problems (Cobbe et al. 2021).

Before finetuning the model gets five training problems, ``Question: …\\nAnswer: …`` with their calculator marks, as in
lm-evaluation-harness `gsm8k` version 3; which five is pinned here, there they are drawn at random. After it the model
gets the finetuning prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..base import EvalSettings, benchmarks
from ..data.datasets import Rows
from ..kinds.answers import NumberBenchmark
from ..kinds.generative import cached_rows, prompt_name
from ..tasks.prompts import finetuning_prompt

EXAMPLE_INDICES = (0, 1, 2, 3, 4)
"""Places in the training split of the examples that are shown."""


@benchmarks.register("gsm8k")
class Gsm8k(NumberBenchmark):
    """Headline: `strict` before finetuning, `answer-is` after it."""

    def variant(self, settings: EvalSettings) -> str:
        """Name shots and prompt."""
        return f"gsm8k-0shot-{prompt_name(settings)}" if settings.stage == "finetuned" else "gsm8k-5shot"

    def headline(self, settings: EvalSettings) -> str:
        """Return the headline's reading."""
        return "answer-is" if settings.stage == "finetuned" else "strict"

    def data(self, settings: EvalSettings) -> Rows:
        """Return the test split."""
        return cached_rows("gsm8k", "test", settings.data_dir)

    def check(self, settings: EvalSettings) -> None:
        """Look for the training split too where examples are shown."""
        super().check(settings)
        self.prompts([], settings)

    def prompts(self, rows: Sequence[Mapping[str, Any]], settings: EvalSettings) -> list[str]:
        """Return the few-shot or the finetuning prompt of each problem."""
        if settings.stage == "finetuned":
            return [finetuning_prompt(row["question"], chat=settings.chat) for row in rows]
        train = cached_rows("gsm8k", "train", settings.data_dir).rows
        examples_text = [f"Question: {train[i]['question']}\nAnswer: {train[i]['answer']}\n\n" for i in EXAMPLE_INDICES]
        return ["".join(examples_text) + f"Question: {row['question']}\nAnswer:" for row in rows]

    def stops(self, settings: EvalSettings) -> tuple[str, ...]:
        """Return the reference's stop strings before finetuning; a finetuned model ends by itself."""
        return ("\n### Instruction",) if settings.stage == "finetuned" else ("Question:", "</s>", "<|im_end|>")
