"""Confidence intervals of accuracies, means, perplexities and seeds, without scipy."""

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

_SERIES_UP_TO = 1000


class Interval(NamedTuple):
    """Ends of a two-sided confidence interval, in the unit of the estimate; infinite where the data bound nothing."""

    low: float
    high: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Return the Wilson score interval of a proportion, without continuity correction (Wilson, 1927).

    Args:
        successes: number of solved problems, 0..n.
        n: number of problems, at least 1.
        confidence: coverage, strictly between 0 and 1.

    Raises:
        ValueError: the counts or the confidence are out of range.
    """
    _check_confidence(confidence)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} are not a proportion")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    # The ends are exactly 0 and 1 for no and for all successes; floating point may miss them by one unit.
    low = 0.0 if successes == 0 else min(max(0.0, centre - half), share)
    high = 1.0 if successes == n else max(min(1.0, centre + half), share)
    return Interval(low, high)


def mean_interval(
    values: Sequence[float],
    confidence: float = 0.95,
    lower: float = -math.inf,
    upper: float = math.inf,
) -> Interval:
    """Return Student's t interval of the mean of independent units (problems, windows, seeds).

    One unit says nothing about the spread, so its interval is the whole range ``lower``..``upper``; otherwise the ends
    are clipped to that range, which must hold the mean.

    Raises:
        ValueError: there are no values, or one is not finite.
    """
    _check_confidence(confidence)
    _check_finite(values)
    if len(values) == 1:
        return Interval(lower, upper)
    n = len(values)
    mean = math.fsum(values) / n
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    half = t_quantile(confidence, n - 1) * math.sqrt(variance / n)
    return Interval(max(lower, mean - half), min(upper, mean + half))


def perplexity_interval(nll_sums: Sequence[float], token_counts: Sequence[int], confidence: float = 0.95) -> Interval:
    """Return the interval of a perplexity, exp(sum of nll / sum of tokens): exp of the ends of `nats_interval`.

    Returns:
        The interval in units of perplexity; 0..inf for a single window; an end too large for a float is inf.

    Raises:
        ValueError: as `nats_interval`.
    """
    return Interval(*map(exp_or_inf, nats_interval(nll_sums, token_counts, confidence)))


def nats_interval(nll_sums: Sequence[float], token_counts: Sequence[int], confidence: float = 0.95) -> Interval:
    """Return the interval of the mean negative log-likelihood of a token, with windows as the units.

    Tokens of one window are not independent, so the standard error of the mean nll is that of a ratio of two window
    sums (the linearised ratio estimator of cluster sampling: Cochran, Sampling Techniques, 1977, section 6.3); the
    interval is mean ± t·se with one degree of freedom less than there are windows.

    Args:
        nll_sums: summed negative log-likelihood of each window, in nats.
        token_counts: scored tokens of each window, at least 1 each.
        confidence: coverage, strictly between 0 and 1.

    Returns:
        The interval in nats; -inf..inf for a single window.

    Raises:
        ValueError: lengths differ, there are no windows, a sum is not finite or a count is below 1.
    """
    _check_confidence(confidence)
    _check_finite(nll_sums)
    if len(nll_sums) != len(token_counts) or min(token_counts) < 1:
        raise ValueError("every window needs one nll sum and at least one token")
    n, tokens = len(nll_sums), sum(token_counts)
    if n == 1:
        return Interval(-math.inf, math.inf)
    mean = math.fsum(nll_sums) / tokens
    # The residual of a window is its own sum less what its tokens would have at the common mean.
    squares = math.fsum((s - mean * t) ** 2 for s, t in zip(nll_sums, token_counts, strict=True))
    half = t_quantile(confidence, n - 1) * math.sqrt(n / (n - 1) * squares) / tokens
    return Interval(mean - half, mean + half)


def across_seeds(
    values: Sequence[float], confidence: float = 0.95, lower: float = -math.inf, upper: float = math.inf
) -> Interval:
    """Return the t interval of a metric's mean over training seeds: the spread of the whole protocol, not of problems.

    With two or three seeds it is wide, as it has to be. ``lower`` and ``upper`` are the metric's own limits.
    """
    return mean_interval(values, confidence, lower, upper)


@lru_cache(maxsize=1024)
def t_quantile(confidence: float, degrees: int) -> float:
    """Return t such that a Student variable with ``degrees`` degrees of freedom is within ±t with this probability.

    Finite series of the distribution for whole degrees (Abramowitz and Stegun 26.7.3-4), inverted by bisection; above
    1000 degrees the expansion around the normal quantile (26.7.5), which is exact to about 1e-12 there.
    """
    _check_confidence(confidence)
    if degrees < 1:
        raise ValueError("Student's distribution needs at least one degree of freedom")
    if degrees > _SERIES_UP_TO:
        return _t_near_normal(NormalDist().inv_cdf((1 + confidence) / 2), degrees)
    # More halvings than a double has digits.
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        angle = (low + high) / 2
        low, high = (angle, high) if _t_within(angle, degrees) < confidence else (low, angle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _t_within(angle: float, degrees: int) -> float:
    """Return P(|T| < √degrees · tan(angle))."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    terms = [] if degrees == 1 else [term]
    for k in range(2 + odd, degrees - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        terms.append(term)
    total = sine * math.fsum(terms)
    return 2 / math.pi * (angle + total) if odd else total


def _t_near_normal(z: float, degrees: int) -> float:
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + g1 / degrees + g2 / degrees**2 + g3 / degrees**3


def exp_or_inf(value: float) -> float:
    """Return exp, or infinity where it is beyond the largest float: a collapsed model's perplexity is infinite."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")


def _check_finite(values: Sequence[float]) -> None:
    if len(values) == 0 or not all(math.isfinite(v) for v in values):
        raise ValueError("an interval needs at least one value, and finite ones")
