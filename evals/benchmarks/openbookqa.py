"""OpenBookQA: 500 science questions that need a fact and common knowledge (Mihaylov et al. 2018).

The test split without the book; prompt and choices of lm-evaluation-harness `openbookqa`.
"""

from __future__ import annotations

from ..base import benchmarks
from ..kinds.harness import HarnessBenchmark


@benchmarks.register("openbookqa")
class OpenBookQa(HarnessBenchmark):
    """Headline: `acc_norm`."""

    task = "openbookqa"
    folder = "openbookqa"
    split = "test"
