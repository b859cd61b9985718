"""Figures of papers made again: our lines with intervals, the papers' own numbers as hollow points without a line."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..foundation.errors import UserError
from ..results.plots.axes import AXES
from ..results.plots.curves import (
    draw_rows,
    finish_legend,
    line_looks,
    measured_line,
    new_figure,
    plain,
    save_figure,
    style,
)
from ..results.tables.escape import clean
from ..results.tables.pivot import Cell, Pivot, Row, is_fraction
from .published.quoted import Quoted

_OTHERS = "#777777"
RETAINED = "retained accuracy"


@dataclass(frozen=True)
class Heading:
    """The words of a figure.

    Attributes:
        title: first line.
        caption: what a reader must know, below the axes; empty if nothing.
        y: the y-axis, where the metric's own name would not be the paper's.
    """

    title: str
    caption: str = ""
    y: str = ""


def draw_figure(
    table: Pivot, stem: Path, heading: Heading, quoted: Sequence[Quoted] = (), methods: Mapping[str, str] | None = None
) -> list[Path]:
    """Draw one picture as PNG and SVG over the ratio.

    Args:
        table: our results.
        stem: path without suffix.
        heading: its words.
        quoted: the paper's numbers to draw; those of uncompressed models are left out.
        methods: the quoted method of each of our labels; a number of another method gets a mark of its own.

    Raises:
        UserError: the table has no compressed model.
    """
    if not table.compressed:
        raise UserError(f"there is no compressed model of {table.model} to draw; run at least one method first")
    with style():
        caption = textwrap.fill(clean(heading.caption), 110, break_on_hyphens=False)
        figure, axes = new_figure(4.9 + 0.16 * (caption.count("\n") + 1 if caption else 0))
        references = [(row, row.label) for row in table.rows if row.uncompressed]
        handles, texts = draw_rows(axes, table, references, AXES["ratio"])
        if table.metric == RETAINED:  # may be more than all
            highest = max(cell.high for row in table.rows for cell in row.cells.values())
            axes.set_ylim(0, max(100.0, 100 * min(highest, 1.5)) * 1.04)
        if heading.y:
            axes.set_ylabel(plain(heading.y))
        points = [row for row in quoted if row.method != "none"]
        if points:
            more = _draw_quoted(axes, table, points, methods or {})
            handles, texts = [*handles, *more[0]], [*texts, *more[1]]
        finish_legend(figure, handles, texts, plain(caption, keep="\n"))
        title = textwrap.fill(clean(heading.title), 80)
        figure.suptitle(plain(title, keep="\n") + "\n" + plain(measured_line(table)), fontsize=10.5)
        return save_figure(figure, stem)


def _draw_quoted(
    axes: Any, table: Pivot, quoted: Sequence[Quoted], methods: Mapping[str, str]
) -> tuple[list[Any], list[str]]:
    """Draw hollow points, with a tail downwards where the source gives an upper bound; return their legend."""
    scale = 100.0 if is_fraction(table.metric) else 1.0
    lines = line_looks([row for row in table.rows if not row.uncompressed])
    handles, texts = [], []
    for method in dict.fromkeys(row.method for row in quoted):
        points = [row for row in quoted if row.method == method]
        label = next((label for label in lines if methods.get(label) == method), "")
        colour, marker = (lines[label].colour, lines[label].marker) if label else (_OTHERS, "o")
        x, y = [row.ratio for row in points], [row.number * scale for row in points]
        for row, a, b in zip(points, x, y, strict=True):
            if row.certainty == "upper bound":
                axes.plot([a, a], [0 if scale == 100 else b / 2, b], color=colour, linewidth=1, linestyle=":", zorder=4)
        drawn = axes.plot(
            x,
            y,
            linestyle="none",
            marker=marker,
            markersize=10,
            markerfacecolor="none",
            markeredgecolor=colour,
            markeredgewidth=1.6,
            zorder=5,
        )
        handles.append(drawn[0])
        bound = " bound" if all(row.certainty == "upper bound" for row in points) else ""
        texts.append(plain(f"{label or method}, quoted{bound}"))
    _make_room(axes, [row.ratio for row in quoted], [row.number * scale for row in quoted], scale == 100)
    return handles, texts


def _make_room(axes: Any, x: Sequence[float], y: Sequence[float], shares: bool) -> None:
    left, right = axes.get_xlim()
    axes.set_xlim(min(left, min(x) / 1.06), max(right, max(x) * 1.06))
    bottom, top = axes.get_ylim()
    highest = max(y) * 1.08
    axes.set_ylim(bottom if shares else min(bottom, min(y) / 1.08), max(top, min(highest, 100) if shares else highest))


def mean_table(tables: Sequence[Pivot], name: str) -> Pivot:
    """Return the mean of several benchmarks' values, with the interval of a mean of independent estimates.

    A cell counts only where every benchmark has it. n is the number of all problems.
    """
    first = tables[0]
    rows = []
    for row in first.rows:
        same = [next((r for r in t.rows if (r.label, r.stage) == (row.label, row.stage)), None) for t in tables]
        cells = {
            ratio: _mean([r.cells[ratio] for r in same if r is not None])
            for ratio in row.cells
            if all(r is not None and ratio in r.cells for r in same)
        }
        if cells:
            rows.append(Row(row.label, row.stage, cells, row.method))
    return replace(
        first,
        benchmark=name,
        variant=f"mean of {', '.join(table.variant for table in tables)}",
        metric="mean accuracy",
        scorer="",
        n=sum(table.n for table in tables),
        ratios=tuple(sorted({ratio for row in rows for ratio in row.cells})),
        rows=tuple(rows),
    )


def _mean(cells: Sequence[Cell]) -> Cell:
    # Square-and-add (Newcombe 1998): each end has a distance of its own, and distances of a sum add in squares.
    value = sum(c.value for c in cells) / len(cells)
    below = math.hypot(*(c.value - c.low for c in cells)) / len(cells)
    above = math.hypot(*(c.high - c.value for c in cells)) / len(cells)
    return replace(cells[0], value=value, low=max(0.0, value - below), high=min(1.0, value + above))


def retained_table(table: Pivot) -> Pivot:
    """Return values as shares of the uncompressed model's, with the interval of a quotient of independent estimates.

    Ours and the uncompressed model solve the same problems, so the interval is somewhat too wide.

    Raises:
        UserError: there is no uncompressed model, or it solves nothing.
    """
    # The last uncompressed row is the finetuned model where there is one: that is what compression starts from.
    base = next((cell for row in reversed(table.rows) if row.uncompressed for cell in row.cells.values()), None)
    if base is None or base.value <= 0:
        raise UserError(f"the uncompressed {table.model} solves nothing of {table.variant}, so nothing can be retained")
    rows = []
    for row in table.rows:
        cells = {}
        for ratio, cell in row.cells.items():
            share = cell.value / base.value
            # Ends of a / b by square-and-add on its linearisation: d(a/b) = da / b - a / b · db / b.
            below = math.hypot(cell.value - cell.low, share * (base.high - base.value)) / base.value
            above = math.hypot(cell.high - cell.value, share * (base.value - base.low)) / base.value
            same = row.uncompressed and cell == base
            ends = (share, share) if same else (max(0.0, share - below), share + above)
            cells[ratio] = replace(cell, value=share, low=ends[0], high=ends[1])
        rows.append(Row(row.label, row.stage, cells, row.method))
    return replace(table, metric=RETAINED, scorer="", rows=tuple(rows))
