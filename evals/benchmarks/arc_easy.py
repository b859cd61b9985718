"""ARC-Easy: 2,376 school science questions that simple baselines answer (Clark et al. 2018).

The test split; prompt and choices of lm-evaluation-harness `arc_easy`.
"""

from __future__ import annotations

from ..base import benchmarks
from ..kinds.harness import HarnessBenchmark


@benchmarks.register("arc-easy")
class ArcEasy(HarnessBenchmark):
    """Headline: `acc_norm`."""

    task = "arc_easy"
    folder = "arc"
    split = "test"
