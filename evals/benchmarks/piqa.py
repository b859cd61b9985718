"""PIQA: 1,838 choices between two ways to reach a physical goal (Bisk et al. 2020).

The validation split, whose answers are public; prompt and choices of lm-evaluation-harness `piqa`.
"""

from __future__ import annotations

from ..base import benchmarks
from ..kinds.harness import HarnessBenchmark


@benchmarks.register("piqa")
class Piqa(HarnessBenchmark):
    """Headline: `acc_norm`."""

    task = "piqa"
    folder = "piqa"
    split = "validation"
