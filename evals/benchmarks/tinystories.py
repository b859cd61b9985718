"""TinyStories: perplexity of the first 40 stories, each read from its beginning (Eldan and Li 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..base import EvalSettings, benchmarks
from ..data.datasets import Rows, content_sha256
from ..kinds.generative import cached_rows
from ..kinds.perplexity import PerplexityBenchmark
from ..tasks.prompts import encode_prompt
from ..tasks.texts import TINYSTORIES_TEST


@benchmarks.register("tinystories")
class TinyStories(PerplexityBenchmark):
    """One window a story: BOS and the story's tokens, cut to 512; all tokens but BOS are predicted."""

    window = 512

    def describe(self, window: int) -> str:
        """Name stories and window."""
        return f"tinystories-{TINYSTORIES_TEST}-bos-{window}"

    def data(self, settings: EvalSettings) -> Rows:
        """Return the first stories of the training split's head; training uses the others."""
        rows = cached_rows("tinystories", "train_head", settings.data_dir)
        held_out = rows.rows[:TINYSTORIES_TEST]
        return Rows(held_out, content_sha256(held_out, ("text",)), rows.source)

    def windows(self, tokenizer: Any, texts: Sequence[str], window: int) -> list[list[int]]:
        """Cut each story."""
        return [encode_prompt(tokenizer, text)[:window] for text in texts]
