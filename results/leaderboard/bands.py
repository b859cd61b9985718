"""Ratio bands: which target ratios stand in one column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

TOLERANCE = 0.02
"""A target this close to a usual ratio, relatively, counts as that ratio."""

SHORTFALL = 0.05
"""A model whose achieved ratio is less than its band by more than this share is not ranked there."""


def band_of(ratio: float) -> float:
    """Return the band of a target ratio.

    Usual ratios are quarter steps up to 2x, half steps up to 4x and whole numbers above. A target within 2 % of one is
    in its band (7.1 is 7x); any other target makes a band of its own, named by three digits (1.43 is 1.43x), because
    methods at clearly different sizes are not ranked against each other. A name has all digits where three would be
    in a usual band (19.5625 stays, since 19.6 is in 20x).
    """
    usual = _usual(ratio)
    if usual is not None:
        return usual
    name = float(f"{ratio:.3g}")
    return name if _usual(name) is None else ratio


def _usual(ratio: float) -> float | None:
    """Return the usual ratio that a target is within 2 % of, or None."""
    step = 0.25 if ratio < 2.125 else 0.5 if ratio < 4.25 else 1.0
    usual = max(1.0, round(ratio / step) * step)
    return usual if abs(ratio / usual - 1) <= TOLERANCE + 1e-9 else None


def bands(targets: Mapping[str, Iterable[float]]) -> dict[float, float]:
    """Return the band of each target ratio of a board.

    A band that would hold two targets of one row is split: each of its targets is a band of its own.

    Args:
        targets: target ratios by row.
    """
    band_of_ratio = {ratio: band_of(ratio) for ratios in targets.values() for ratio in ratios}
    crowded = set()
    for ratios in targets.values():
        row = [band_of_ratio[ratio] for ratio in set(ratios)]
        crowded |= {band for band in row if row.count(band) > 1}
    return {ratio: ratio if band in crowded else band for ratio, band in band_of_ratio.items()}


def band_name(band: float) -> str:
    """Return a band as a column's title: ``1.5×``."""
    return f"{band:.6g}×"
