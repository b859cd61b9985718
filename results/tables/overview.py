"""All benchmarks of a run in one table: a line a benchmark, a column a model, and the change against uncompressed.

This is where a trade-off is read: perplexities, accuracies and biases beside each other. Values have no intervals here
(the tables of `tables` have them); only benchmarks that every column was measured on enter the mean accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .pivot import Cell, Pivot, direction, format_value, is_fraction, pivot
from .table import Column, Table, number_columns

if TYPE_CHECKING:
    import pandas as pd

_ACCURACIES = ("acc", "acc_norm", "accuracy")
MIN_BENCHMARKS = 3
"""From so many on an overview says more than the single tables."""


NOTE = "in parentheses: difference to the uncompressed model (perplexities: factor); intervals are in the other tables"


def overviews(frame: pd.DataFrame) -> list[Table]:
    """Return an overview for each model, task and budget with several benchmarks; headline metrics only."""
    groups: dict[tuple[str, str, str, str, int], list[Pivot]] = {}
    for table in pivot(frame):
        groups.setdefault((table.model, table.task, table.engine, table.dtype, table.budget), []).append(table)
    return [_overview(key, tables) for key, tables in groups.items() if len(tables) >= MIN_BENCHMARKS]


def _overview(key: tuple[str, str, str, str, int], tables: Sequence[Pivot]) -> Table:
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
        name += f", data {table.data}" if table.data else ""
        lines.append((name, *(_text(table.metric, cells.get(column), reference) for column in columns)))
        if table.metric in _ACCURACIES:
            accuracies.append([cells[column].value if column in cells else None for column in columns])
    whole = [row for row in accuracies if None not in row]
    if len(whole) > 1:
        means = [sum(values) / len(whole) for values in zip(*whole, strict=True)]
        lines.append((f"mean of the {len(whole)} accuracies above, %", *(f"{100 * mean:.1f}" for mean in means)))
    heads = [Column(""), *number_columns(*(f"{label} {ratio:g}×" for label, ratio, _ in columns))]
    notes = list(dict.fromkeys(table.note for table in tables if table.note))
    budget = f", {key[4]:,} steps after the first finetuning" if key[4] else ""
    return Table(f"{key[0]} · {key[1]}: overview ({key[2]}, {key[3]}{budget})", heads, lines, notes=notes, legend=NOTE)


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
