"""WikiText-2 (raw, test): perplexity as published for compressed language models (Merity et al. 2016).

All rows are joined by two newlines and tokenised as one text; the tokens are cut into windows of 2,048 that do not
overlap, and the rest is dropped. This is the rule of the GPTQ evaluation code, by which dense Llama-2-7B has 5.47; at
4,096 it has 5.12, so the window is part of the name. Where each window begins with a BOS, the name ends in ``-bos``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..base import EvalSettings, benchmarks
from ..data.datasets import Rows
from ..kinds.generative import cached_rows
from ..kinds.perplexity import PerplexityBenchmark
from ..tasks.prompts import joined_windows


@benchmarks.register("wikitext2")
class WikiText2(PerplexityBenchmark):
    """Non-overlapping windows of 2,048 tokens; the first token of a window is not predicted."""

    window = 2048
    windowing = 2  # 1 began the text with a BOS also where the tokenizer has one and does not add it
    has_bos_option = True

    def describe(self, window: int) -> str:
        """Name the window."""
        return f"wikitext2-test-{window}"

    def data(self, settings: EvalSettings) -> Rows:
        """Return the test split, empty rows included."""
        return cached_rows("wikitext2", "test", settings.data_dir)

    def windows(self, tokenizer: Any, texts: Sequence[str], window: int, bos: bool = False) -> list[list[int]]:
        """Cut the joined text."""
        return joined_windows(tokenizer, texts, window, bos=bos)
