"""A metric over the training tokens after the first finetuning: a panel for each ratio, a line for each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..tables.escape import clean
from ..tables.names import wrap
from ..tables.pivot import Cell, Pivot, Row, is_fraction, pivot, same_but_budget
from .axes import AXES, XAxis
from .curves import (
    draw_line,
    file_stem,
    finish_legend,
    line_looks,
    measured_line,
    new_sheet,
    plain,
    save_figure,
    set_y_axis,
    style,
)
from .references import draw_references

if TYPE_CHECKING:
    import pandas as pd

TOKENS = "tokens"
"""As ``bench plot --x`` takes it."""
_TOKENS = XAxis(TOKENS, "training tokens after the first finetuning", lambda c: c.tokens, lambda c: c.tokens)
_PANELS = 3
"""Panels beside each other."""


def draw_budgets(frame: pd.DataFrame, folder: Path, headline: bool = True) -> list[Path]:
    """Draw PNG and SVG for each measure that has several budgets; equal records give equal SVG bytes.

    Rows that were not trained after compression have no place on the axis and are left out; the uncompressed model is
    a horizontal line.

    Args:
        frame: records as `records.read_records` returns them.
        folder: made if missing.
        headline: draw headline metrics only.

    Returns:
        The paths written, PNG before SVG; none where no measure has several budgets.
    """
    paths: list[Path] = []
    groups = same_but_budget(pivot(frame, headline))
    first = [group[0] for group in groups]
    with style():
        for group in groups:
            if group[0].budget and any(row.budgeted for row in group[0].rows):
                whole = [replace(table, budget=0) for table in (group[0], *first)]
                paths += save_figure(_figure(group), folder / f"{file_stem(whole[0], whole[1:])}-by-tokens")
    return paths


def _figure(tables: Sequence[Pivot]) -> Any:
    ratios = sorted({ratio for t in tables for row in t.rows if row.budgeted for ratio in row.cells})
    across = min(len(ratios), _PANELS)
    down = -(-len(ratios) // across)
    figure = new_sheet(3.6 * across + (3.6 if across == 1 else 0.4), 1.4 + 3.3 * down)
    panels = figure.subplots(down, across, squeeze=False, sharey=True)
    rows = {ratio: _rows(tables, ratio) for ratio in ratios}
    labels = list(dict.fromkeys(row.label for part in rows.values() for row in part))
    every = {row.label: row for part in rows.values() for row in part}
    looks = line_looks([every[label] for label in labels])
    references = [row for row in tables[0].rows if row.uncompressed]
    scale = 100.0 if is_fraction(tables[0].metric) else 1.0
    handles: dict[str, Any] = {}
    for number, axes in enumerate(panels.flat):
        if number >= len(ratios):
            axes.set_axis_off()
            continue
        # The axis of ratios draws a level alone: the uncompressed model has no tokens here and so no point.
        drawn = draw_references(axes, references, scale, AXES["ratio"])
        handles |= zip([row.label for row in references], drawn, strict=True)
        for row in rows[ratios[number]]:
            handles[row.label] = draw_line(axes, row, looks[row.label], scale, _TOKENS)
        set_y_axis(axes, tables[0], [*references, *(row for part in rows.values() for row in part)], scale)
        if number % across:
            axes.set_ylabel("")
        _set_tokens_axis(axes, rows[ratios[number]])
        axes.set_title(f"{ratios[number]:g}×", fontsize=10)
        axes.grid(True, color="#e4e4e4", linewidth=0.7)
        axes.set_axisbelow(True)
    order = [label for label in (*(row.label for row in references), *labels) if label in handles]
    finish_legend(figure, [handles[label] for label in order], [plain(label) for label in order])
    table = replace(tables[0], budget=0)
    first = wrap(clean(f"{table.model} · {table.task} · {table.variant}"), 80)
    second = f"{measured_line(table, 'bars')} · a panel for each ratio"
    figure.suptitle(plain(first, keep="\n") + "\n" + plain(second), fontsize=10.5)
    return figure


def _rows(tables: Sequence[Pivot], ratio: float) -> list[Row]:
    """Return a row for each label with its cells at one ratio by budget."""
    cells: dict[tuple[str, str, str], dict[float, Cell]] = {}
    for table in tables:
        for row in table.rows:
            if row.budgeted and ratio in row.cells:
                cells.setdefault((row.label, row.stage, row.method), {})[float(table.budget)] = row.cells[ratio]
    return [Row(label, stage, part, method, True) for (label, stage, method), part in cells.items()]


def _set_tokens_axis(axes: Any, rows: Sequence[Row]) -> None:
    """Tick the x-axis at the budgets: tokens below, which differ a little between rows, and steps above."""
    from matplotlib.ticker import FixedLocator, NullLocator

    tokens: dict[float, list[float]] = {}
    for row in rows:
        for budget, cell in row.cells.items():
            tokens.setdefault(budget, []).append(cell.tokens)
    ticks = {sum(values) / len(values): budget for budget, values in sorted(tokens.items())}
    axes.set_xscale("log", base=2)
    axes.set_xlabel(_TOKENS.label)
    top = axes.secondary_xaxis("top")
    top.set_xlabel("steps")
    top.spines["top"].set_visible(True)
    texts = [_count(tick) for tick in ticks], [f"{budget:g}" for budget in ticks.values()]
    for side, labels in zip((axes.xaxis, top.xaxis), texts, strict=True):
        side.set_major_locator(FixedLocator(list(ticks)))
        side.set_minor_locator(NullLocator())
        side.set_ticklabels(labels)


def _count(tokens: float) -> str:
    for unit in ("", " k", " M"):
        if tokens < 1000:
            return f"{tokens:.3g}{unit}"
        tokens /= 1000
    return f"{tokens:.3g} G"
