"""Paired tests over problems, many at once, and Holm's correction for having asked many questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]

LEAST_FLIPS = 10_000
_SIGNS_AT_ONCE = 4_000_000
_TIE = 1e-9
"""Sums of the same differences in another order may differ by rounding; so close to the largest they count as equal."""


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the two-sided p-value of McNemar's exact test: discordant problems fall to either side by a fair coin."""
    # The sum is exact in whole numbers; from n = 1000 on, 2^n is beyond a float, so the division is one of logarithms.
    n, k = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, i) for i in range(k + 1))
    return min(1.0, float(2 * tail / (1 << n)) if n < 1000 else math.exp(math.log(2 * tail) - n * math.log(2)))


def paired_interval(only_a: int, only_b: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of (only_b - only_a) / n with half an observation added to each of the four cells."""
    # Agresti and Min 2005: without the halves, no discordant problem at all would give an interval of length 0.
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    b, c, total = only_b + 0.5, only_a + 0.5, n + 2
    centre = (b - c) / total
    half = z * math.sqrt((b + c) - (b - c) ** 2 / total) / total
    return max(-1.0, centre - half), min(1.0, centre + half)


def sign_flips(differences: Floats, flips: int = LEAST_FLIPS, seed: int = 0) -> Floats:
    """Return the two-sided p-value of the sign-flip permutation test of each column (Fisher's, for paired samples).

    If two models are equal on a problem, their difference there is as likely to have either sign. All columns share the
    random signs, which leaves each p-value what it is. The observed signs count as one of the flips, so that no p-value
    is 0 (Phipson and Smyth 2010).

    Args:
        differences: (problems, comparisons); 0 where a problem has no part in a comparison.
        flips: how many random sign vectors.
        seed: of the signs; the same input gives the same p-values.
    """
    n, _ = differences.shape
    random = np.random.default_rng(seed)
    observed = np.abs(differences.sum(axis=0))
    reached = observed * (1 - _TIE) - 1e-300
    beyond = np.zeros(differences.shape[1], dtype=np.int64)
    # In parts: all signs of 10,000 problems and as many flips at once would be 800 MB.
    step = max(1, _SIGNS_AT_ONCE // max(1, *differences.shape))
    for start in range(0, flips, step):
        count = min(step, flips - start)
        signs = random.integers(0, 2, (count, n), dtype=np.int8).astype(np.float64) * 2 - 1
        beyond += (np.abs(signs @ differences) >= reached).sum(axis=0)
    return np.asarray((beyond + 1) / (flips + 1))


def enough_flips(comparisons: int) -> int:
    """Return so many flips that the least p-value stays below 0.05 after a correction for all comparisons."""
    # The least p-value is 1 / (flips + 1): with 40 flips a comparison it is below 1/40 after the correction.
    return max(LEAST_FLIPS, min(200 * comparisons, 50_000), 40 * comparisons)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979); valid however the tests depend on each other.

    The chance of any false rejection stays below the level.
    """
    # The running maximum keeps the order of the p-values: one that is larger is never adjusted to less.
    adjusted, running, n = [0.0] * len(p_values), 0.0, len(p_values)
    for rank, index in enumerate(sorted(range(n), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (n - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
