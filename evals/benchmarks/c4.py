"""C4: perplexity of web pages, the first 200 documents of the English training split (Raffel et al. 2020).

The documents are joined by spaces, as in the GPTQ evaluation code, and tokenised as one text; the tokens are cut into
windows of 2,048 that do not overlap. Where each begins with a BOS, the variant's name ends in ``-bos``. The papers
measure 256 windows of the *validation* split: these documents are others, so the numbers are **not comparable** with
published ones. Training and calibration use the 800 documents behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..base import EvalSettings, benchmarks
from ..data.datasets import Rows, content_sha256
from ..kinds.generative import cached_rows
from ..kinds.perplexity import PerplexityBenchmark
from ..tasks.prompts import joined_windows
from ..tasks.texts import C4_TEST


@benchmarks.register("c4")
class C4(PerplexityBenchmark):
    """Non-overlapping windows of 2,048 tokens; the first token of a window is not predicted."""

    window = 2048
    windowing = 2  # 1 began the text with a BOS also where the tokenizer has one and does not add it
    has_bos_option = True

    def describe(self, window: int) -> str:
        """Name documents and window."""
        return f"c4-train-first{C4_TEST}-{window}"

    def data(self, settings: EvalSettings) -> Rows:
        """Return the first documents of the training split's head; training uses the others."""
        rows = cached_rows("c4", "train_head", settings.data_dir)
        held_out = rows.rows[:C4_TEST]
        return Rows(held_out, content_sha256(held_out, ("text",)), rows.source)

    def windows(self, tokenizer: Any, texts: Sequence[str], window: int, bos: bool = False) -> list[list[int]]:
        """Cut the joined text."""
        return joined_windows(tokenizer, texts, window, separator=" ", bos=bos)
