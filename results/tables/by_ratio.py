"""Tables of methods by ratio, one for each task and benchmark variant, with sizes and training tokens behind them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from .by_bytes import BYTES, by_bytes, scaled
from .pivot import Cell, Pivot, Row, format_cell, pivot, same_but_budget
from .table import Cell as TableCell
from .table import Column, Field, Table, by_label, number_columns, text_columns
from .tuning import tuning

if TYPE_CHECKING:
    import pandas as pd

_DETAILS = ("target", "achieved", "kept", "matrices", "params", "on disk", "in memory", "tokens after finetune")
_CONDITIONS = ("model", "task", "benchmark", "variant", "metric", "scorer", "n", "engine", "dtype", "data")


EXACT_WIDTH = 100
"""Columns of a terminal from which every digit of parameters and tokens fits."""


def by_ratio(frame: pd.DataFrame, headline: bool = True, exact: bool = True) -> list[Table]:
    """Return the tables of all records; those of one model and task are followed by one of its sizes.

    Args:
        frame: records.
        headline: take headline metrics only.
        exact: show every digit of parameters and tokens.
    """
    tables = []
    for (model, task), group in _by_model(pivot(frame, headline)):
        tables += [_by_ratio(part) for part in same_but_budget(group)]
        tables += [table for same in group if (table := by_bytes(same)) is not None]
        if (tuned := tuning(frame, model, task)) is not None:
            tables.append(tuned)
        tables.append(_sizes(f"{model} · {task}: sizes and training tokens", group, exact))
    return tables


def by_ratio_data(frame: pd.DataFrame, headline: bool = True) -> Table:
    """Return one table of all records: a row for each of a table, and per ratio value, interval, seeds, achieved ratio.

    Values are in the metric's own unit at full precision.
    """
    pivots = pivot(frame, headline)
    ratios = sorted({ratio for table in pivots for ratio in table.ratios})
    parts = ("", " low", " high", " seeds", " achieved ratio")
    conditions = (*_CONDITIONS, *(["budget"] if any(table.budget for table in pivots) else []))
    names = [*conditions, "label", *(f"{ratio:g}x{part}" for ratio in ratios for part in parts)]
    rows: list[list[TableCell]] = []
    for table in pivots:
        for row in table.rows:
            cells: list[TableCell] = [*(getattr(table, name) for name in conditions), row.label]
            for ratio in ratios:
                c = row.cells.get(ratio)
                cells += [None] * len(parts) if c is None else [c.value, c.low, c.high, len(c.seeds), c.ratio]
            rows.append(cells)
    return Table("results", text_columns(*names), rows)


def _by_ratio(tables: Sequence[Pivot]) -> Table:
    """Return one table; several budgets have a column of their own, and models without one are shown once."""
    several = len(tables) > 1
    ratios = sorted({ratio for table in tables for ratio in table.ratios})
    columns = [Column(""), *number_columns(*(["steps"] if several else []), *(f"{ratio:g}×" for ratio in ratios))]
    lines: dict[tuple[str, str, int], list[TableCell]] = {}
    for table in tables:
        for row in table.rows:
            budget = table.budget if row.budgeted else 0
            steps: list[TableCell] = [Field(f"{budget:,}", budget) if budget else None] if several else []
            cells = [row.label, *steps, *(_field(table, row, ratio) for ratio in ratios)]
            lines.setdefault((row.label, row.stage, budget), cells)
    uncompressed = {(row.label, row.stage) for table in tables for row in table.rows if row.uncompressed}
    labels = list(dict.fromkeys(label for label, _, _ in lines))
    order = sorted(lines, key=lambda key: (key[:2] not in uncompressed, labels.index(key[0]), key[2]))
    pinned = sum(key[:2] in uncompressed for key in order)
    notes = list(dict.fromkeys(table.note for table in tables if table.note))
    legend = _interval_note(tables) + _too_long_note(tables)
    if several:
        legend += "; steps: after the first finetuning, pruning included"
    title = replace(tables[0], budget=0).title
    shown = Table(title, columns, [lines[key] for key in order], notes=notes, legend=legend, pinned=pinned)
    return by_label(shown) if several else shown


def _field(table: Pivot, row: Row, ratio: float) -> Field:
    cell = row.cells.get(ratio)
    if cell is None:
        return Field("")
    text, interval = format_cell(table.metric, cell)
    return Field(text, cell.value, interval)


def _by_model(pivots: Sequence[Pivot]) -> Iterable[tuple[tuple[str, str], list[Pivot]]]:
    groups: dict[tuple[str, str], list[Pivot]] = {}
    for table in pivots:
        groups.setdefault((table.model, table.task), []).append(table)
    return groups.items()


def _too_long_note(tables: Sequence[Pivot]) -> str:
    """Say how many prompts did not fit the model, or nothing where all did."""
    shares = dict.fromkeys(
        f"{table.variant}, {row.label}{'' if row.uncompressed else f' {ratio:g}×'}{_steps(table, row)}: "
        f"{100 * cell.too_long:.1f} %"
        for table in tables
        for row in table.rows
        for ratio, cell in row.cells.items()
        if 0 < cell.too_long < 1
    )
    if not shares:
        return ""
    return f"; †: prompts that did not fit the model's context count as not solved ({'; '.join(shares)})"


def _interval_note(tables: Sequence[Pivot]) -> str:
    level = f"{100 * tables[0].confidence:g} %"
    if any(cell.across_seeds for table in tables for row in table.rows for cell in row.cells.values()):
        return f"[low, high]: {level} interval; (k): mean of k seeds, with the t interval across them"
    seeds = sorted({seed for table in tables for seed in table.seeds})
    return f"[low, high]: {level} interval over the n problems or windows; seed {', '.join(map(str, seeds))}"


def _steps(table: Pivot, row: Row) -> str:
    return f" with {table.budget:,} steps" if table.budget and row.budgeted else ""


def _sizes(title: str, pivots: Sequence[Pivot], exact: bool) -> Table:
    rows_by_model: dict[tuple[str, float, int], list[TableCell]] = {}
    uncompressed = set()
    several = any(table.budget for table in pivots)
    for table in pivots:
        for row in table.rows:
            budget = table.budget if row.budgeted else 0
            steps: list[TableCell] = [f"{budget:,}" if budget else ""] if several else []
            for ratio, cell in row.cells.items():
                key = row.label, ratio, budget
                rows_by_model.setdefault(key, [row.label, *steps, *_size(ratio, cell, exact)])
                uncompressed |= {key} if row.uncompressed else set()
    labels = list(dict.fromkeys(label for label, _, _ in rows_by_model))
    order = sorted(rows_by_model, key=lambda key: (key not in uncompressed, labels.index(key[0]) if several else 0))
    columns = [Column(""), *number_columns(*(["steps"] if several else []), *_DETAILS)]
    return by_label(Table(title, columns, [rows_by_model[key] for key in order]))


def _size(ratio: float, cell: Cell, exact: bool) -> list[str]:
    counts = [f"{count:,.0f}" if exact else scaled(count, ("", "k", "M", "B")) for count in (cell.params, cell.tokens)]
    sizes = [scaled(size, BYTES) for size in (cell.bytes, cell.runtime_bytes)]
    return [
        *(f"{ratio:g}×", f"{cell.ratio:.3f}×", f"{100 * cell.kept:.1f} %", f"{cell.ratio_matrices:.3f}×"),
        *(counts[0], *sizes, counts[1]),
    ]
