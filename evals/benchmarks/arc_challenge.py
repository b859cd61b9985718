"""ARC-Challenge: 1,172 school science questions that simple baselines miss (Clark et al. 2018).

The test split; prompt and choices of lm-evaluation-harness `arc_challenge`.
"""

from __future__ import annotations

from ..base import benchmarks
from ..kinds.harness import HarnessBenchmark


@benchmarks.register("arc-challenge")
class ArcChallenge(HarnessBenchmark):
    """Headline: `acc_norm`."""

    task = "arc_challenge"
    folder = "arc"
    split = "test"
