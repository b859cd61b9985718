"""All benchmarks of a run in one table: a line a benchmark, a column a model, and the change against uncompressed.

This is where a trade-off is read: perplexities, accuracies and biases beside each other. Values have no intervals here
(the tables of `tables` have them); only benchmarks that every column was measured on enter the mean accuracy.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .pivot import Cell, Table, direction, format_value, is_fraction, pivot
from .writers import clean, markdown_table, markdown_text

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

_ACCURACIES = ("acc", "acc_norm", "accuracy")
_NAME_WIDTH, _CELL_WIDTH = 34, 17
MIN_BENCHMARKS = 3
"""From so many on an overview says more than the single tables."""


@dataclass(frozen=True)
class Overview:
    """One model and task: column titles and lines of texts, ready to print."""

    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def overviews(frame: pd.DataFrame) -> list[Overview]:
    """Return an overview for each model and task with several benchmarks; headline metrics only."""
    groups: dict[tuple[str, str, str, str], list[Table]] = {}
    for table in pivot(frame):
        groups.setdefault((table.model, table.task, table.engine, table.dtype), []).append(table)
    return [_overview(key, tables) for key, tables in groups.items() if len(tables) >= MIN_BENCHMARKS]


def _overview(key: Sequence[str], tables: Sequence[Table]) -> Overview:
    columns = list(
        dict.fromkeys(
            (row.label, ratio, row.uncompressed) for table in tables for row in table.rows for ratio in row.cells
        )
    )
    columns.sort(key=lambda column: not column[2])
    base = [column for column in columns if column[2]][-1:]
    lines = []
    accuracies: list[list[float | None]] = []
    for table in tables:
        cells = {(row.label, ratio, row.uncompressed): cell for row in table.rows for ratio, cell in row.cells.items()}
        reference = cells.get(base[0]) if base else None
        name = f"{table.variant}: {table.measure}, {direction(table.metric, table.higher_is_better)}, n = {table.n}"
        lines.append((name, *(_text(table.metric, cells.get(column), reference) for column in columns)))
        if table.metric in _ACCURACIES:
            accuracies.append([cells[column].value if column in cells else None for column in columns])
    whole = [row for row in accuracies if None not in row]
    if len(whole) > 1:
        means = [sum(values) / len(whole) for values in zip(*whole, strict=True)]
        lines.append((f"mean of the {len(whole)} accuracies above, %", *(f"{100 * mean:.1f}" for mean in means)))
    header = ("", *(f"{label} {ratio:g}×" for label, ratio, _ in columns))
    return Overview(f"{key[0]} · {key[1]}: overview ({key[2]}, {key[3]})", header, tuple(lines))


def _text(metric: str, cell: Cell | None, reference: Cell | None) -> str:
    if cell is None:
        return ""
    value = format_value(metric, cell.value)
    if reference is None or cell is reference:
        return value
    if "perplexity" in metric:
        return f"{value} ({cell.value / reference.value:.3g}×)"
    change = cell.value - reference.value
    return f"{value} ({100 * change:+.1f})" if is_fraction(metric) else f"{value} ({change:+.3f})"


NOTE = "in parentheses: difference to the uncompressed model (perplexities: factor); intervals are in the other tables"


def render_overview(frame: pd.DataFrame, console: Console) -> None:
    """Print the overviews."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    for overview in overviews(frame):
        console.print()
        console.print(Text(clean(overview.title), style="bold"))
        count = max(1, (console.width - _NAME_WIDTH) // _CELL_WIDTH)
        for start in range(1, len(overview.header), count):
            grid = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
            grid.add_column("", width=_NAME_WIDTH, overflow="fold")
            for name in overview.header[start : start + count]:
                grid.add_column(Text(clean(name)), justify="right", width=_CELL_WIDTH - 2, overflow="fold")
            for name, *cells in overview.lines:
                first = clean(name).replace(": ", "\n  ", 1)
                grid.add_row(Text(first), *(Text(clean(text)) for text in cells[start - 1 : start - 1 + count]))
            console.print(grid)
        console.print(Text(NOTE, style="dim"))


def overview_markdown(frame: pd.DataFrame) -> str:
    """Return the overviews as GitHub-flavoured Markdown."""
    parts = []
    for overview in overviews(frame):
        parts += [f"### {markdown_text(overview.title)}", markdown_table(overview.header, overview.lines), NOTE]
    return "\n\n".join(parts) + "\n"


def overview_csv(frame: pd.DataFrame) -> str:
    """Return the overviews as CSV, texts as shown."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for overview in overviews(frame):
        writer.writerow([clean(overview.title), *overview.header[1:]])
        writer.writerows([[clean(cell) for cell in line] for line in overview.lines])
    return text.getvalue()
