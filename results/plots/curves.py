"""Curves: a metric over the achieved ratio, one line a label, readable without colour, the same bytes each time."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...foundation.files import digest, write_atomic
from ...models.quantised.scheme import CORRECTED
from ..tables.escape import clean
from ..tables.names import wrap
from ..tables.pivot import Pivot, Row, direction, is_fraction, is_perplexity, pivot
from .axes import AXES, XAxis, log_locator, set_x_axis
from .looks import Look, looks, method_of
from .references import draw_references, interval_ends, references_of

if TYPE_CHECKING:
    import pandas as pd

_RANK = re.compile(r"[:,]rank=\d+(?=$|[^,\d])|(?<=[:,])rank=\d+,")
_CROWDED = 8
"""With more lines the figure has a panel for each few of them, the others in grey behind."""
_LEGEND = 78
_PANEL_LEGEND = 40
"""Characters of a line of the legend below a figure, and below one of its panels."""
_PANEL_LINES = 6
_STYLE: Any = {
    # Labels are the user's: a $ in one begins no formula.
    "text.parse_math": False,
    # Without a fixed salt matplotlib's ids are random, and equal records would not give equal bytes.
    "svg.hashsalt": "lowrank-bench",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
}


def draw_curves(
    frame: pd.DataFrame, folder: Path, headline: bool = True, x: str = "ratio", condition: str = ""
) -> list[Path]:
    """Draw each task's benchmarks as PNG and SVG; equal records give equal SVG bytes.

    The x-axis is the achieved ratio on a base-2 logarithmic scale, with the share of parameters kept above; bands are
    the records' intervals; the uncompressed model is a horizontal line, also where it was measured under another
    variant (few-shot before finetuning), which the legend then names. Over bytes or tokens per second lines go from
    ratio to ratio, and the uncompressed model is a point as well.

    Args:
        frame: records as `records.read_records` returns them.
        folder: made if missing.
        headline: draw headline metrics only.
        x: one of `axes.AXES`.
        condition: of a measured x, shown in the title and part of the file name.

    Returns:
        The paths written, PNG before SVG; none where no compressed model was evaluated, or has an x.
    """
    tables, axis = pivot(frame, headline), AXES[x]
    paths: list[Path] = []
    with style():
        for table in tables:
            if not any(axis.cells(row) for row in table.rows if not row.uncompressed):
                continue
            figure = _figure(table, references_of(table, tables), axis, condition)
            stem = folder / (file_stem(table, tables) + (f"-by-{slug(condition or x)}" if x != "ratio" else ""))
            paths += save_figure(figure, stem)
    return paths


@contextmanager
def style() -> Iterator[None]:
    """Draw with our settings alone, whatever the user's matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def save_figure(figure: Any, stem: Path) -> list[Path]:
    """Write a figure as PNG and SVG without dates, each atomically, and return the paths."""
    paths = []
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], dpi=160, metadata=metadata)
        paths.append(stem.with_name(stem.name + suffix))
        write_atomic(paths[-1], buffer.getvalue())
    return paths


def file_stem(table: Pivot, tables: Sequence[Pivot]) -> str:
    """Return the name of a table's figure without its ending, other than those of the other tables."""
    names, name = [_stem(t) for t in tables], _stem(table)
    # A slug loses characters and keeps only its end, so two tables may have one name and overwrite each other.
    if names.count(name) > 1:
        name += f"-{digest([table.title, table.model, table.n])[:8]}"
    return name


def _stem(table: Pivot) -> str:
    scorer = f"-{table.scorer}" if table.scorer else ""
    steps = f"-{table.budget}-steps" if table.budget else ""
    return slug(f"{table.model}-{table.task}-{table.variant}-{table.metric}{scorer}{steps}")


def slug(text: str) -> str:
    """Return text as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9.@]+", "-", text).strip("-.")[-150:] or "curve"


def _figure(table: Pivot, references: Sequence[tuple[Row, str]], axis: XAxis, condition: str) -> Any:
    drawn = "bands" if axis.name == "ratio" else "bars"
    lines = _lines(table, axis)
    if len(lines) > _CROWDED:
        groups = _groups(lines, table.higher_is_better)
        figure = new_sheet(4.1 * len(groups) + 0.6, 6.2)
        _panels(figure, table, references, axis, groups)
        _title(figure, table, drawn, condition, len(groups))
        return figure
    figure, axes = new_figure()
    finish_legend(figure, *draw_rows(axes, table, references, axis))
    _title(figure, table, drawn, condition)
    return figure


def new_figure(height: float = 4.9) -> tuple[Any, Any]:
    """Return a figure with one pair of axes; the height is in inches."""
    figure = new_sheet(7.2, height)
    return figure, figure.add_subplot()


def new_sheet(width: float, height: float) -> Any:
    """Return an empty figure; sizes are in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _lines(table: Pivot, axis: XAxis) -> list[Row]:
    rows = [row for row in table.rows if not row.uncompressed and axis.cells(row)]
    return rows if axis.name == "ratio" else _joined(rows)


def _joined(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with those of a corrected control that differ in its rank alone as one, from fewer bytes on."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_RANK.sub("", row.label) if row.method == CORRECTED else row.label, []).append(row)
    joined = []
    for label, group in groups.items():
        cells = sorted((cell for row in group for cell in row.cells.values()), key=lambda cell: cell.bytes)
        # The key takes the place of a ratio: fewest bytes are the largest key, as the deepest ratio is in `_groups`.
        whole = replace(group[0], label=label, cells={-cell.bytes: cell for cell in cells})
        joined.append(whole if len(group) > 1 else group[0])
    return joined


def draw_rows(
    axes: Any,
    table: Pivot,
    references: Sequence[tuple[Row, str]],
    axis: XAxis,
    coloured: Sequence[Row] | None = None,
) -> tuple[list[Any], list[str]]:
    """Draw a table's rows and both axes; return the handles and texts of the legend, references first.

    With ``coloured`` only these rows are drawn as lines with markers and intervals, the others in grey behind them.
    """
    scale = 100.0 if is_fraction(table.metric) else 1.0
    lines, uncompressed = _lines(table, axis), [row for row, _ in references]
    shown = lines if coloured is None else coloured
    for row in lines:
        if row not in shown:
            cells = axis.cells(row)
            axes.plot([axis.value(c) for c in cells], [c.value * scale for c in cells], color="#cfcfcf", linewidth=1)
    handles = draw_references(axes, uncompressed, scale, axis)
    chosen = line_looks(lines)
    handles += [draw_line(axes, row, chosen[row.label], scale, axis) for row in shown]
    texts = [plain(text) for _, text in references] + [plain(row.label) for row in shown]
    set_x_axis(axes, axis, lines, uncompressed)
    set_y_axis(axes, table, uncompressed + lines, scale)
    axes.grid(True, color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    return handles, texts


def finish_legend(figure: Any, handles: Sequence[Any], texts: Sequence[str], caption: str = "") -> None:
    """Put the legend below the axes, with a caption above its entries."""
    columns = 1 if max(map(len, texts)) > 40 else min(3, len(texts))
    texts = [wrap(text, _LEGEND) for text in texts]
    legend = figure.legend(handles, texts, loc="outside lower center", ncols=columns, frameon=False, handlelength=3.6)
    if caption:
        legend.set_title(caption, prop={"size": 7.5})
        legend.set_alignment("left")


def line_looks(rows: Sequence[Row]) -> dict[str, Look]:
    """Return how each compressed row of a table is drawn, by its label."""
    methods = [row.method or method_of(row.label) for row in rows]
    return dict(zip([row.label for row in rows], looks(methods), strict=True))


def _groups(lines: Sequence[Row], higher_is_better: bool) -> list[list[Row]]:
    """Return the lines in groups of nearly equal size, the best at the deepest ratio first."""

    def end(row: Row) -> float:
        value = row.cells[max(row.cells)].value
        return (-value if higher_is_better else value) if math.isfinite(value) else math.inf

    ordered = sorted(lines, key=end)
    count = math.ceil(len(lines) / _PANEL_LINES)
    cuts = [round(i * len(lines) / count) for i in range(count + 1)]
    return [ordered[a:b] for a, b in pairwise(cuts)]


def _panels(
    figure: Any, table: Pivot, references: Sequence[tuple[Row, str]], axis: XAxis, groups: Sequence[Sequence[Row]]
) -> None:
    """Draw each group in a panel of its own with its legend below, all other lines in grey behind it."""
    for axes, group in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        handles, texts = draw_rows(axes, table, references, axis, group)
        axes.set_xlabel(wrap(axes.get_xlabel(), 42))
        if axes is not figure.axes[0]:
            axes.set_ylabel("")
        axes.legend(
            handles,
            [wrap(text, _PANEL_LEGEND) for text in texts],
            loc="upper center",
            bbox_to_anchor=(0.5, -0.19),
            ncols=1 if max(map(len, texts)) > 24 else 2,
            frameon=False,
            handlelength=3.2,
            fontsize=8.5,
        )


def draw_line(axes: Any, row: Row, look: Look, scale: float, axis: XAxis) -> Any:
    """Draw a row as a line with markers and intervals; return its handle for the legend."""
    cells = axis.cells(row)
    colour = look.colour
    x = [axis.value(c) for c in cells]
    y = [c.value * scale for c in cells]
    low, high = interval_ends(cells, scale)
    if len(cells) > 1 and axis.name == "ratio":  # else the line may turn back
        axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
    below, above = [v - a for v, a in zip(y, low, strict=True)], [b - v for v, b in zip(y, high, strict=True)]
    axes.errorbar(x, y, yerr=[below, above], fmt="none", ecolor=colour, elinewidth=1, capsize=3, alpha=0.55)
    return axes.plot(
        x,
        y,
        color=colour,
        linestyle=look.dashes,
        marker=look.marker,
        markersize=7,
        markeredgecolor="white",
        markeredgewidth=0.6,
        linewidth=1.8,
        zorder=3,
    )[0]


def set_y_axis(axes: Any, table: Pivot, rows: Sequence[Row], scale: float) -> None:
    """Scale and label the y-axis for some rows of a table."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    unit = "%" if is_fraction(table.metric) else "nats" if table.metric.startswith("nats") else ""
    scorer = f" ({table.scorer})" if table.scorer else ""
    good = direction(table.metric, table.higher_is_better)
    axes.set_ylabel(plain(f"{table.metric}{scorer}{f' [{unit}]' if unit else ''}, {good}"))
    cells = [cell for row in rows for cell in row.cells.values() if math.isfinite(cell.value)]
    if is_fraction(table.metric):
        top = max([c.high for c in cells if math.isfinite(c.high)], default=1.0) * scale
        axes.set_ylim(0, min(100.0, max(top * 1.08, 1.0)))
    elif is_perplexity(table.metric) and cells:
        low, high = min(c.value for c in cells), max(c.value for c in cells)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(log_locator(low, high) if high / low > 8 else MaxNLocator(7))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.6g}"))
        # A huge interval (two windows, two seeds) must not flatten the curves.
        bottom, top = axes.get_ylim()
        axes.set_ylim(max(bottom, low / 3), min(top, high * 3))


def _title(figure: Any, table: Pivot, drawn: str, condition: str, panels: int = 1) -> None:
    width = 80 if panels < 3 else 130
    first = wrap(clean(f"{table.model} · {table.task} · {table.variant}"), width)
    second = measured_line(table, drawn)
    if panels > 1:
        second += "\npanels from the best to the worst at the highest ratio, the other lines in grey"
    third = "\n" + plain(wrap(clean(condition), width), keep="\n") if condition else ""
    figure.suptitle(plain(first, keep="\n") + "\n" + plain(second, keep="\n") + third, fontsize=10.5)


def measured_line(table: Pivot, drawn: str = "bands") -> str:
    """Return in one line what a figure is made of: problems, seeds, intervals, data."""
    seeds = f"seed {table.seeds[0]}" if len(table.seeds) == 1 else f"{len(table.seeds)} seeds"
    spread = any(cell.across_seeds for row in table.rows for cell in row.cells.values())
    bands = f"{drawn}: {100 * table.confidence:g} % interval" + (" across seeds" if spread else "")
    steps = f" · {table.budget:,} steps" if table.budget else ""
    return f"n = {table.n} · {seeds} · {bands}{steps}" + (f" · data {table.data}" if table.data else "")


def plain(text: str, keep: str = "") -> str:
    """Return text without control characters other than ``keep``, and not hidden from legends by a leading '_'."""
    shown = keep.join(map(clean, text.split(keep))) if keep else clean(text)
    return f" {shown}" if shown.startswith("_") else shown
