"""What is known of a metric by its name: whether it is a share, which values are good, how it is written."""

from __future__ import annotations

import math

_FRACTIONS = {
    *("accuracy", "acc", "acc_norm", "exact_match", "maj@k"),
    *("f1", "rouge1", "rouge2", "rougeL", "bleu"),
    *("no_answer", "cut_off", "timeout", "prompt_too_long"),
    *("pct_stereotype", "stereotype_score", "language_score", "icat"),
}

_IDEALS = {
    "pct_stereotype": (0.5, "50 is no preference"),
    "stereotype_score": (0.5, "50 is no preference"),
    "accuracy_gap": (0.0, "0 is no gap"),
}


def is_fraction(metric: str) -> bool:
    """Return whether a metric is a share in 0..1, shown in percent."""
    name = metric.partition("/")[0]
    return name in _FRACTIONS or "pass@" in name or metric.endswith(("accuracy", "_rate"))


def direction(metric: str, higher_is_better: bool) -> str:
    """Return in words which values are good; measures of bias have their ideal in the middle."""
    name = metric.partition("/")[0]
    if name in _IDEALS:
        return _IDEALS[name][1]
    return f"{'higher' if higher_is_better else 'lower'} is better"


def has_ideal(metric: str) -> bool:
    """Return whether a metric is best somewhere in the middle, so that neither more nor less is better."""
    return metric.partition("/")[0] in _IDEALS


_DIGITS = 12
"""Significant digits of values that are compared; sums of doubles differ from about the sixteenth on."""


def goodness(metric: str, higher_is_better: bool, value: float) -> float:
    """Return a number that is larger for better values; where the ideal is in the middle, minus the distance to it.

    It is rounded to `_DIGITS`, so that means which are equal but for the rounding of their sums are equal.
    """
    name = metric.partition("/")[0]
    if name in _IDEALS:
        return -without_rounding(abs(value - _IDEALS[name][0]))
    return without_rounding(value if higher_is_better else -value)


def without_rounding(value: float) -> float:
    """Return a value without the digits that the order of a sum decides."""
    return float(f"{value:.{_DIGITS}g}")


def is_perplexity(metric: str) -> bool:
    """Return whether a metric is a perplexity, drawn on a logarithmic axis."""
    return "perplexity" in metric


def limits(metric: str) -> tuple[float, float]:
    """Return the least and the largest value that a metric can have."""
    if is_perplexity(metric):
        return 1.0, math.inf
    return (0.0, 1.0) if is_fraction(metric) else (-math.inf, math.inf)


def format_value(metric: str, value: float) -> str:
    """Return a metric's value as text: shares in percent with one decimal, others with about four digits."""
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if is_fraction(metric):
        return f"{100 * value:.1f}"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}" if size < 1e7 else f"{value:.3g}"
    return f"{value:.{3 if size < 10 else 2 if size < 100 else 1}f}"
