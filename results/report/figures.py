"""The report's pictures, readable without colour, the same bytes for the same report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from markupsafe import Markup

from ..pages.charts import Axis, Point, Series, chart
from ..plots.curves import plain
from ..plots.looks import MARKERS, Look, looks, method_of
from ..tables.names import shorten_all, wrap
from ..tables.pivot import Cell, Pivot, direction, format_cell, is_fraction, is_perplexity
from .data import Energy, Failures, RankMap, Spectra
from .spending import Spending

_HATCHES = ("", "///", "\\\\\\", "xxx", "---", "|||", "+++", "/-")
_BAR_COLOURS = ("#e8e8e4", "#9ecae1", "#fdd0a2", "#6b8fb5", "#c7e9c0", "#bcbddc", "#f7b6d2", "#d9d9a0")
MOST_LINES = len(MARKERS)
"""So many lines have markers of their own."""
MOST_BANDS = 4
"""More bands than this would hide each other."""
NUMBERED_CELLS = 1600
"""Up to so many cells a heat map shows its numbers."""
_LABELS = 3
_WIDTH = 9.0


def _new(height: float, width: float = _WIDTH) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))
    FigureCanvasAgg(figure)
    return figure


def labels_text(labels: Sequence[str], most: int = _LABELS) -> str:
    """Return names for a title: the first few, and how many more."""
    text = ", ".join(shorten_all(labels[:most]).values())
    return plain(text + (f" +{len(labels) - most}" if len(labels) > most else ""))


def curve(table: Pivot, name: str) -> Markup:
    """Draw a table's values over the achieved ratio, a line each row, the uncompressed models as levels."""
    scale = 100.0 if is_fraction(table.metric) else 1.0
    rows = [row for row in table.rows if not row.uncompressed]
    best = sorted(rows, key=lambda row: fmean(c.value for c in row.cells.values()), reverse=table.higher_is_better)
    drawn = [row for row in rows if row in best[:MOST_LINES]]
    series = [
        Series(
            row.label,
            [_point(table, row.label, ratio, row.cells[ratio], scale) for ratio in sorted(row.cells)],
            method=row.method,
        )
        for row in drawn
    ]
    levels = [(row.label, scale * c.value) for row in table.rows if row.uncompressed for c in row.cells.values()]
    good = direction(table.metric, table.higher_is_better)
    x = Axis(
        "achieved ratio of the whole model", logarithmic=True, ticks=[r for r in table.ratios if r != 1], suffix="×"
    )
    y = Axis(f"{table.measure} · {good}", logarithmic=None if is_perplexity(table.metric) else False)
    text = f"{len(series)} lines over the achieved ratio, one for each row of the table; {good}."
    return chart(name, f"{table.variant}: {table.measure}", text, x, y, series, levels)


def budget_curve(tables: Sequence[Pivot], ratio: float, name: str) -> Markup:
    """Draw the values at one ratio over the training tokens after the first finetuning, a line each row.

    Args:
        tables: that differ in nothing but the budget, ascending in it.
        ratio: target.
        name: id of the chart.
    """
    first = tables[0]
    scale = 100.0 if is_fraction(first.metric) else 1.0
    points: dict[str, list[Point]] = {}
    methods: dict[str, str] = {}
    for table in tables:
        for row in table.rows:
            if row.budgeted and ratio in row.cells:
                cell = row.cells[ratio]
                value, interval = format_cell(table.metric, cell)
                text = f"{row.label} with {table.budget:,} steps, {cell.tokens:,.0f} tokens: {value} {interval}"
                at = Point(cell.tokens, scale * cell.value, scale * cell.low, scale * cell.high, text)
                points.setdefault(row.label, []).append(at)
                methods[row.label] = row.method
    series = [Series(label, line, method=methods[label]) for label, line in list(points.items())[:MOST_LINES]]
    levels = [(row.label, scale * c.value) for row in first.rows if row.uncompressed for c in row.cells.values()]
    good = direction(first.metric, first.higher_is_better)
    x = Axis("training tokens after the first finetuning", logarithmic=True)
    y = Axis(f"{first.measure} · {good}", logarithmic=None if is_perplexity(first.metric) else False)
    text = f"{len(series)} lines over the training tokens, one for each row of the tables; {good}."
    return chart(name, f"{first.variant} at {ratio:g}×: {first.measure}", text, x, y, series, levels)


def _point(table: Pivot, label: str, ratio: float, cell: Cell, scale: float) -> Point:
    value, interval = format_cell(table.metric, cell)
    text = f"{label} at {ratio:g}×: {value} {interval}"
    return Point(cell.ratio, scale * cell.value, scale * cell.low, scale * cell.high, text)


def rank_figure(maps: Sequence[RankMap]) -> Any:
    """Draw the ranks of one ratio: a panel for each set of ranks, layers down, kinds of matrices across.

    The shade is the share of the matrix's parameters that is stored, darker is more; numbers are ranks, ``D`` a matrix
    that stayed dense, ``s`` behind a rank one that uses another's first factor.
    """
    cells = sum(len(rank_map.layers) * len(rank_map.kinds) for rank_map in maps)
    numbers = cells <= NUMBERED_CELLS
    columns = min((4 if numbers else 6) if len(maps[0].kinds) <= 8 else 2, len(maps))
    lines = -(-len(maps) // columns)
    depth = max(len(rank_map.layers) for rank_map in maps)
    width = _WIDTH if columns > 1 else 5.0
    titles = [_rank_title(rank_map, width / columns) for rank_map in maps]
    height = 0.75 + depth * (0.24 if depth <= 12 else 0.13) + 0.13 * max(title.count("\n") for title in titles)
    figure = _new(max(2.4, lines * height + 1.1), width)
    panels = figure.subplots(lines, columns, squeeze=False)
    shares = [cell.share for rank_map in maps for row in rank_map.cells for cell in row if cell is not None]
    most = min(1.0, math.ceil(10 * max(shares)) / 10) or 1.0
    for index, axes in enumerate(panels.flat):
        if index >= len(maps):
            axes.set_axis_off()
            continue
        picture = _rank_panel(axes, maps[index], titles[index], most, numbers)
    bar = figure.colorbar(picture, ax=panels, location="top", aspect=45, pad=0.01, shrink=0.5)
    bar.set_label("share of the matrix's parameters that is stored", fontsize=7.5)
    bar.ax.tick_params(labelsize=7)
    return figure


def _rank_title(rank_map: RankMap, width: float) -> str:
    """Return a panel's title in lines that fit a panel so many inches wide."""
    text = labels_text(rank_map.labels, 2 if len(rank_map.labels) > 3 else 3)
    return wrap(text, max(10, int(15 * (width - 0.5))))


def _rank_panel(axes: Any, rank_map: RankMap, title: str, most: float, numbers: bool) -> Any:
    import numpy as np

    shares = np.array([[np.nan if c is None else min(c.share, 1.0) for c in row] for row in rank_map.cells])
    count, width = len(rank_map.layers), len(rank_map.kinds)
    colours: dict[str, Any] = {"cmap": "cividis_r", "vmin": 0, "vmax": most}
    if numbers:
        picture = axes.pcolormesh(shares[::-1], edgecolors="white", linewidth=0.4, **colours)
    else:  # a path for each of many cells would fill megabytes
        edges = (0, width, 0, count)
        picture = axes.imshow(shares, aspect="auto", interpolation="nearest", extent=edges, **colours)
    for y, row in enumerate(rank_map.cells):
        for x, cell in enumerate(row):
            text = "" if cell is None else "D" if cell.rank is None else f"{cell.rank}{'s' if cell.shared else ''}"
            if text and (numbers or text == "D"):
                colour = "white" if cell is not None and cell.share > 0.55 * most else "black"
                size = 6.5 if len(text) < 4 else 5.5
                label = axes.text(x + 0.5, count - y - 0.5, text, ha="center", va="center", fontsize=size, color=colour)
                label.set_in_layout(False)  # inside of its cell: the layout need not measure it
    names = [kind.removesuffix("_proj") for kind in rank_map.kinds]
    axes.set_xticks([i + 0.5 for i in range(len(names))], [plain(n) for n in names], fontsize=6.5, rotation=60)
    step = 1 if count <= 16 else -(-count // 8)
    ticks = range(0, count, step)
    label = [rank_map.layers[i] or "–" for i in ticks]
    axes.set_yticks([count - i - 0.5 for i in ticks], label, fontsize=6.5)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(title, fontsize=7.5)
    return picture


def spectra_figure(fits: Sequence[Spectra]) -> Any:
    """Draw cumulative energy over the share of the rank: a panel for each kind of matrix, a line for each fit."""
    kinds = list(dict.fromkeys(energy.kind for fit in fits for energy in fit.kinds))
    columns = min(4, len(kinds))
    lines = -(-len(kinds) // columns)
    figure = _new(1.0 + 1.9 * lines + 0.22 * -(-len(fits) // 3))
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    handles: dict[int, Any] = {}
    chosen = looks([method_of(fit.labels[0] if fit.labels else fit.name) for fit in fits])
    for number, axes in enumerate(panels.flat):
        if number >= len(kinds):
            axes.set_axis_off()
            continue
        for index, fit in enumerate(fits):
            for energy in fit.kinds:
                if energy.kind == kinds[number]:
                    handles[index] = _energy_line(axes, energy, chosen[index], index, band=len(fits) <= MOST_BANDS)
        axes.set_title(plain(kinds[number]), fontsize=8.5)
        axes.axhline(90, color="#777777", linewidth=0.7)
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 102)
        axes.grid(True, linewidth=0.6)
        axes.tick_params(labelsize=7)
        axes.set_xlabel("parts kept [%]" if number + columns >= len(kinds) else "", fontsize=7.5)
        axes.xaxis.set_tick_params(labelbottom=number + columns >= len(kinds))
        axes.set_ylabel("energy [%]" if number % columns == 0 else "", fontsize=7.5)
    texts = [wrap(plain(f"{fit.name or 'fit'}: {labels_text(fit.labels)}"), 54) for fit in fits]
    used = sorted(handles)
    figure.legend(
        [handles[i] for i in used],
        [texts[i] for i in used],
        loc="outside lower center",
        ncols=min(2, len(used)),
        frameon=False,
        fontsize=7.5,
        handlelength=3.4,
    )
    return figure


def _energy_line(axes: Any, energy: Energy, look: Look, index: int, band: bool) -> Any:
    x = [100 * share for share in energy.shares]
    colour = look.colour
    if band:
        low, high = ([100 * v for v in part] for part in (energy.low, energy.high))
        axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    return axes.plot(
        x,
        [100 * v for v in energy.median],
        color=colour,
        linestyle=look.dashes,
        marker=look.marker,
        markevery=(index % 4 * 2, 10),
        markersize=4,
        linewidth=1.3,
    )[0]


def spending_figure(spending: Spending) -> Any:
    """Draw each row's seconds by kind of stage, shared stages beside them."""
    return _bars(
        [row.name for row in spending.rows],
        spending.kinds,
        [("", [[row.seconds.get(kind, 0.0) for kind in spending.kinds] for row in spending.rows])],
        "seconds of computing",
    )


def failure_figure(failures: Failures, ratios: Sequence[float]) -> Any:
    """Draw the shares of right answers and of each kind of failure: a panel for each ratio, a bar for each row."""
    rows = [row for row in failures.counted if row.ratio in ratios]
    names = list(dict.fromkeys(row.label for row in rows))
    kinds = ["correct", *failures.kinds]
    shares = {(r.label, r.ratio): [100 * r.counts.get(kind, 0) / r.total for kind in kinds] for r in rows}
    nothing = [0.0] * len(kinds)
    panels = [(f"{ratio:g}×", [shares.get((name, ratio), nothing) for name in names]) for ratio in ratios]
    return _bars(names, kinds, panels, "answers [%]")


def _bars(
    names: Sequence[str], kinds: Sequence[str], panels: Sequence[tuple[str, Sequence[Sequence[float]]]], label: str
) -> Any:
    """Draw stacked bars: a panel for each title with values by name and kind; all panels have the same names."""
    short = shorten_all(names)
    texts = [wrap(plain(short[name]), 34) for name in names]
    row = 0.14 + 0.13 * max(text.count("\n") + 1 for text in texts)
    figure = _new(1.0 + row * len(names) + 0.25 * -(-len(kinds) // 4), 7.6 if len(panels) == 1 else _WIDTH)
    heights = [len(names) - i for i in range(len(names))]
    most = max(sum(row) for _, values in panels for row in values) or 1.0
    handles: list[Any] = []
    for axes, (title, values) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        left, handles = [0.0] * len(names), []
        for index, kind in enumerate(kinds):
            widths = [row[index] for row in values]
            hatch, colour = _HATCHES[index % len(_HATCHES)], _BAR_COLOURS[index % len(_BAR_COLOURS)]
            style = {"color": colour, "hatch": hatch, "edgecolor": "#333333", "linewidth": 0.5, "height": 0.72}
            handles.append(axes.barh(heights, widths, left=left, label=plain(kind), **style))
            left = [a + b for a, b in zip(left, widths, strict=True)]
        first = title == panels[0][0]
        axes.set_yticks(heights, texts if first else [], fontsize=8)
        axes.set_ylim(0.4, len(names) + 0.6)
        axes.set_xlim(0, most * 1.01)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(plain(label), fontsize=8.5)
        axes.tick_params(axis="x", labelsize=7.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(True, axis="x", linewidth=0.6)
        axes.set_axisbelow(True)
    legend = {"loc": "outside lower center", "ncols": min(4, len(kinds)), "frameon": False, "fontsize": 8}
    figure.legend(handles=handles, handleheight=1.2, **legend)
    return figure
