"""Bisection over a grid of ratios: which is the largest that still works, for the best of several methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Holds = Callable[[str, float], bool]
"""Whether a method at a ratio keeps what has to be kept; asked as seldom as possible."""


def ratio_grid(least: float, most: float, resolution: float) -> list[float]:
    """Return ratios from ``least`` to ``most``, each at most ``1 + resolution`` times the one before.

    They are rounded to hundredths, so that another search or a sweep can name the same cells.
    """
    steps = max(1, math.ceil(math.log(most / least) / math.log1p(resolution)))
    grid = [round(least * (most / least) ** (step / steps), 2) for step in range(steps + 1)]
    return list(dict.fromkeys(grid))


def largest_ratio(methods: Sequence[str], grid: Sequence[float], holds: Holds) -> tuple[str, int] | None:
    """Return the method with the largest ratio that holds, and the ratio's place in the grid; None where none does.

    A method after the first is asked for one ratio more than the best so far, and no further where that fails. Between
    ratios that were asked for, the answer is taken to be the same on either side of one border.

    Args:
        methods: in order; of equals the first is returned.
        grid: ascending.
        holds: what is asked.
    """
    best: tuple[str, int] | None = None
    for method in methods:
        known, failed = best[1] if best else -1, len(grid)
        if best is not None:
            if known + 1 == failed or not holds(method, grid[known + 1]):
                continue
            known += 1
            best = method, known
        # `known` holds or is below the grid; `failed` does not hold or is above it.
        while failed - known > 1:
            middle = (known + failed) // 2
            if holds(method, grid[middle]):
                known, best = middle, (method, middle)
            else:
                failed = middle
    return best


def largest_confirmed(
    methods: Sequence[str], grid: Sequence[float], chosen: tuple[str, int], holds: Holds, confirms: Holds
) -> tuple[str, int] | None:
    """Return the first candidate that is confirmed, from the largest ratio down; None where none is.

    Of a ratio the search's choice comes first, then the other methods. A candidate holds in the search as well.

    Args:
        methods: in order.
        grid: ascending.
        chosen: what `largest_ratio` returned.
        holds: in the search.
        confirms: on other problems; asked once for a candidate.
    """
    for position in range(chosen[1], -1, -1):
        for method in dict.fromkeys([chosen[0], *methods]):
            if holds(method, grid[position]) and confirms(method, grid[position]):
                return method, position
    return None
