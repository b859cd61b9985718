"""Small texts: lists, durations, counts."""

from __future__ import annotations

from collections.abc import Sequence


def and_list(names: Sequence[str]) -> str:
    """Return names as a list in a sentence: ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""


def with_budget(label: str, budget: int) -> str:
    """Return a row's label with its training steps; 0 adds nothing."""
    return f"{label}, {budget:,} steps" if budget else label


def duration(seconds: float) -> str:
    """Return seconds as a reader says them: ``41 s``, ``12 min``, ``3.2 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def count(number: float) -> str:
    """Return a count with a prefix: ``128 k``, ``3.2 M``."""
    for unit in ("", " k", " M", " G"):
        if number < 1000 or unit == " G":
            return f"{number:.3g}{unit}"
        number /= 1000
    raise AssertionError
