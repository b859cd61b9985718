"""Verdicts to numbers: shares of problems with intervals, and pass@k."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from ...records.intervals import mean_interval, wilson
from ..base import Metric

Verdict = Literal["correct", "wrong", "no-answer", "timeout"]
"""What a scorer says about one completion. Everything but ``correct`` counts as not solved; ``timeout`` means that the
scorer gave up (time, memory, or an answer beyond its limits), not that the answer was found to be wrong."""

PASS_AT = (1, 5, 10, 25, 50, 100)
"""Values of k that are reported where there are at least k samples of each problem."""


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Return the unbiased estimate of the chance that one of k samples or more is right (Chen et al. 2021, eq. 1).

    Args:
        n: samples drawn.
        correct: right ones among them, 0..n.
        k: samples that one would draw, 1..n.

    Raises:
        ValueError: the numbers are not in these ranges.
    """
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} is not defined for {correct} correct of {n} samples")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def rate(name: str, values: Sequence[float], scorer: str = "", headline: bool = False, better: bool = True) -> Metric:
    """Return the mean of per-problem values in 0..1 with an interval that treats problems as the units.

    The interval is Wilson's where every value is 0 or 1, else Student's of the mean of the values.
    """
    n = len(values)
    if all(value in (0, 1) for value in values):
        interval = wilson(round(math.fsum(values)), n)
    else:
        interval = mean_interval(values, lower=0.0, upper=1.0)
    return Metric(name, math.fsum(values) / n, interval.low, interval.high, n, headline, better, scorer)


def share(name: str, count: int, n: int, scorer: str = "", headline: bool = False, better: bool = True) -> Metric:
    """Return a share of problems as a metric with its Wilson interval."""
    return rate(name, [1.0] * count + [0.0] * (n - count), scorer, headline, better)
