"""Uncompressed models in a figure: which rows are drawn, under which conditions they were measured, and their lines."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..tables.pivot import Cell, Pivot, Row
from .axes import XAxis

_REFERENCE_COLOUR = {"finetuned": "#222222", "pretrained": "#888888"}
_REFERENCE_MARKER = {"finetuned": "h", "pretrained": "p"}


def references_of(table: Pivot, tables: Sequence[Pivot]) -> list[tuple[Row, str]]:
    """Return uncompressed rows of the table, then those of other variants of the benchmark, with their legend texts.

    A row of another variant that was measured under several conditions (scorer, number of problems, engine) is taken
    under those of the table; where it was not measured under them, under all, and each text names the conditions.
    """
    references = [(row, row.label) for row in table.rows if row.uncompressed]
    stages = {row.stage for row, _ in references}
    same = ("model", "task", "benchmark", "metric")
    others: dict[tuple[str, str], list[tuple[Row, str]]] = {}
    for other in tables:
        if other.compressed or any(getattr(other, name) != getattr(table, name) for name in same):
            continue
        differing = _differing(table, other)
        for row in other.rows:
            if row.stage not in stages:
                others.setdefault((row.label, other.variant), []).append((row, differing))
    for (label, variant), measured in others.items():
        alike = [(row, differing) for row, differing in measured if not differing]
        references += [(row, f"{label}, {variant}{differing}") for row, differing in alike or measured]
    return references


def _differing(table: Pivot, other: Pivot) -> str:
    """Return the conditions of another table that are not those of the table, each after a comma."""
    texts = {
        "scorer": other.scorer or "no scorer",
        "n": f"n = {other.n}",
        "engine": other.engine,
        "dtype": other.dtype,
        "data": f"data {other.data}" if other.data else "",
        "confidence": f"{100 * other.confidence:g} % interval",
    }
    if other.data.split(" ")[0] == table.data.split(" ")[0]:
        texts["data"] = ""  # the prompts of another variant always differ
    return "".join(f", {text}" for name, text in texts.items() if text and getattr(other, name) != getattr(table, name))


def draw_references(axes: Any, rows: Sequence[Row], scale: float, axis: XAxis) -> list[Any]:
    """Draw uncompressed rows, those of one stage with different dashes; return their handles for the legend."""
    drawn: Counter[str] = Counter()
    handles = []
    for row in rows:
        handles.append(_draw_reference(axes, row, _dashes(row.stage, drawn[row.stage]), scale, axis))
        drawn[row.stage] += 1
    return handles


def _dashes(stage: str, number: int) -> tuple[int, tuple[int, ...]]:
    """Return the dashes of an uncompressed row, of which so many of its stage are drawn already."""
    if stage == "finetuned":
        return 0, (9, 3, *(2, 3) * number)
    return 0, (*(2, 3) * number, 2, 9 if number else 3)


def _draw_reference(axes: Any, row: Row, dashes: tuple[int, tuple[int, ...]], scale: float, axis: XAxis) -> Any:
    """Draw an uncompressed row as a line across, over measured axes with a point; return its handle."""
    cell = next(iter(row.cells.values()))
    colour = _REFERENCE_COLOUR[row.stage]
    low, high = interval_ends([cell], scale)
    axes.axhspan(low[0], high[0], color=colour, alpha=0.09, linewidth=0)
    line = axes.axhline(cell.value * scale, color=colour, linestyle=dashes, linewidth=1.3, zorder=2)
    if axis.name == "ratio" or not math.isfinite(axis.value(cell)):
        return line
    style = {"color": colour, "linestyle": dashes, "linewidth": 1.3, "marker": _REFERENCE_MARKER[row.stage]}
    return axes.plot(
        [axis.value(cell)],
        [cell.value * scale],
        **style,
        markersize=9,
        markerfacecolor="white",
        markeredgewidth=1.4,
        zorder=4,
    )[0]


def interval_ends(cells: Sequence[Cell], scale: float) -> tuple[list[float], list[float]]:
    """Return the ends of the intervals; an end that is infinite falls on the value, so that nothing is drawn there."""
    low = [(c.low if math.isfinite(c.low) else c.value) * scale for c in cells]
    high = [(c.high if math.isfinite(c.high) else c.value) * scale for c in cells]
    return low, high
