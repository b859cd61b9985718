"""Tables over any columns: rows, columns and values as asked, seeds averaged, conditions never mixed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...foundation.errors import UserError, unknown
from ...records.intervals import across_seeds
from ...records.metrics import format_value, limits
from ...records.schema import COLUMNS, KEY_COLUMNS, STAGES, Record
from .pivot import mean
from .table import Column, Table, number_columns, text_columns

if TYPE_CHECKING:
    import pandas as pd

_SPLITS = ("model", "task", "benchmark", "variant", "metric", "scorer", "n", "engine", "dtype")
"""Conditions: what differs in one of them is in another table."""
_HASHES = {"model_sha256": "model", "dataset_sha256": "problems", "prompt_sha256": "prompts"}
_MUST_AGREE = ("label", *(c for c in KEY_COLUMNS if c not in (*_SPLITS, *_HASHES, "seed", "label")))
_SIGNIFICANT = 4


@dataclass(frozen=True)
class Layout:
    """Which columns make rows, columns and cells.

    Attributes:
        rows, columns: columns of the schema; one line, and one column, for each combination of their values.
        value: the column shown; ``value`` is shown with its interval.
    """

    rows: tuple[str, ...] = ("label",)
    columns: tuple[str, ...] = ("ratio_target",)
    value: str = "value"

    def __post_init__(self) -> None:
        """Refuse unknown columns.

        Raises:
            UserError: a column is unknown, or is named twice.
        """
        columns = (*self.rows, *self.columns, self.value)
        for column in columns:
            if column not in COLUMNS:
                raise unknown("column", column, COLUMNS)
        if not self.rows or not self.columns:
            raise UserError(
                "rows and columns need at least one column each, such as --rows label --columns ratio_target"
            )
        twice = next((column for column in columns if columns.count(column) > 1), None)
        if twice:
            raise UserError(f"{twice} is named twice; name each column once in --rows, --columns and --value")


@dataclass(frozen=True)
class Entry:
    """One cell: a mean over seeds, or one text that all its records share.

    Attributes:
        value: a number or a text.
        low, high: of the metric's value: as in `pivot.Cell`; else NaN.
        seeds: how many seeds the mean is over.
    """

    value: float | str
    low: float = math.nan
    high: float = math.nan
    seeds: int = 1


@dataclass(frozen=True)
class CrossTable:
    """One table of one set of conditions: titles, and entries by row and column."""

    title: str
    metric: str
    layout: Layout
    rows: tuple[tuple[Any, ...], ...]
    columns: tuple[tuple[Any, ...], ...]
    entries: Mapping[tuple[tuple[Any, ...], tuple[Any, ...]], Entry]


def cross(frame: pd.DataFrame, layout: Layout, headline: bool = True) -> list[CrossTable]:
    """Group records into tables of the asked layout.

    Records whose conditions differ (model, task, benchmark variant, metric, scorer, number of problems, engine, number
    format, and the data where it is not drawn from the seed) are in tables of their own, unless the column that
    differs is one of the layout's. Within a cell only seeds are averaged.

    Args:
        frame: records as `records.read_records` returns them.
        layout: which columns make rows, columns and cells.
        headline: take headline metrics only.

    Raises:
        UserError: there is nothing to show, or a cell would mix records that differ in more than the seed.
    """
    chosen = frame[frame["headline"]] if headline else frame
    if chosen.empty:
        raise UserError("there are no records to show; name a run that has evaluated at least one model")
    placed = {*layout.rows, *layout.columns}
    splits = [column for column in _SPLITS if column not in placed]
    groups: dict[tuple[Any, ...], list[Mapping[Any, Any]]] = {}
    lines: list[Mapping[Any, Any]] = chosen.to_dict("records")  # type: ignore[assignment]
    for line in lines:
        groups.setdefault(tuple(line[column] for column in splits), []).append(line)
    tables = []
    for key, group in groups.items():
        for data, part in _by_data(group, placed):
            title = " · ".join(
                _titled(name, value) for name, value in zip(splits, key, strict=True) if _telling(name, value)
            )
            tables.append(_table(f"{title}{data}", part, layout))
    return tables


def _telling(name: str, value: Any) -> bool:
    return value != "" and name != "benchmark"  # the variant names it


def _titled(name: str, value: Any) -> str:
    return f"n = {value}" if name == "n" else str(value)


def _by_data(group: Sequence[Mapping[Any, Any]], placed: set[str]) -> Iterable[tuple[str, Sequence[Mapping[Any, Any]]]]:
    """Split where one seed has different data: then it is not the seed from which the data was drawn."""
    hashes = [column for column in _HASHES if column not in placed]
    parts: dict[tuple[str, ...], list[Mapping[Any, Any]]] = {}
    by_seed: dict[tuple[Any, ...], set[tuple[str, ...]]] = {}
    for line in group:
        data = tuple(line[column] for column in hashes)
        parts.setdefault(data, []).append(line)
        by_seed.setdefault((line["seed"], line["variant"], line["metric"], line["model"]), set()).add(data)
    if max(map(len, by_seed.values())) == 1:
        return [("", group)]
    return [(f" · data {' '.join(sha256[:8] for sha256 in data if sha256)}", part) for data, part in parts.items()]


def _table(title: str, lines: Sequence[Mapping[Any, Any]], layout: Layout) -> CrossTable:
    cells: dict[tuple[tuple[Any, ...], tuple[Any, ...]], list[Mapping[Any, Any]]] = {}
    for line in lines:
        key = (tuple(line[c] for c in layout.rows), tuple(line[c] for c in layout.columns))
        cells.setdefault(key, []).append(line)
    rows = sorted({row for row, _ in cells}, key=lambda key: _order(layout.rows, key))
    columns = sorted({column for _, column in cells}, key=lambda key: _order(layout.columns, key))
    entries = {key: _entry(key, members, layout) for key, members in cells.items()}
    return CrossTable(title, str(lines[0]["metric"]), layout, tuple(rows), tuple(columns), entries)


def _order(names: Sequence[str], key: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(STAGES.index(v) if name == "stage" else v for name, v in zip(names, key, strict=True))


def _entry(key: tuple[Any, ...], lines: Sequence[Mapping[Any, Any]], layout: Layout) -> Entry:
    distinct = {line["seed"]: line for line in lines}
    if len(lines) > 1:
        for column in _MUST_AGREE:
            values = list(dict.fromkeys(str(line[column]) for line in lines))
            if len(values) > 1:
                shown = ", ".join(values[:5])
                raise UserError(
                    f"the cell {_cell_name(key)} would mix {len(values)} values of {column} ({shown}); add {column} to "
                    f"--rows or --columns, or choose one with --where '{column}={values[0]}'"
                )
    if len(distinct) < len(lines):
        raise UserError(f"the cell {_cell_name(key)} has two records of one seed; choose one with --where")
    values = [line[layout.value] for line in lines]
    first = lines[0]
    if Record.model_fields[layout.value].annotation not in (int, float) or isinstance(values[0], str | bool):
        if len(set(values)) > 1:
            raise UserError(
                f"the cell {_cell_name(key)} has several values of {layout.value} and no mean; add seed to "
                "--rows or --columns"
            )
        return Entry(str(values[0]), seeds=len(lines))
    middle = mean(values)
    if layout.value != "value":
        return Entry(middle, seeds=len(lines))
    low, high = float(first["low"]), float(first["high"])
    if len(set(values)) > 1 and math.isfinite(middle):
        low, high = across_seeds(values, float(first["confidence"]), *limits(first["metric"]))
    return Entry(middle, low, high, len(lines))


def _cell_name(key: tuple[Any, ...]) -> str:
    return " / ".join(_name(part) for part in key)


def _name(key: Sequence[Any]) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in key)


def _text(table: CrossTable, entry: Entry | None) -> str:
    if entry is None:
        return ""
    if isinstance(entry.value, str):
        return entry.value
    if table.layout.value == "value":
        low, high = (format_value(table.metric, end) for end in (entry.low, entry.high))
        return f"{format_value(table.metric, entry.value)} [{low}, {high}]{_count(entry)}"
    shown = f"{entry.value:,.0f}" if entry.value == round(entry.value) else f"{entry.value:.{_SIGNIFICANT}g}"
    return f"{shown}{_count(entry)}"


def _count(entry: Entry) -> str:
    return f" ({entry.seeds})" if entry.seeds > 1 else ""


def _title(table: CrossTable) -> str:
    return f"{table.title}: {table.layout.value} by {', '.join(table.layout.columns)}"


def note(layout: Layout) -> str:
    """Return what a cell says."""
    if layout.value == "value":
        return (
            "[low, high]: interval of the records over problems or windows; (k): mean of k seeds, with the t interval "
            "across them where they differ; shares in percent"
        )
    return "(k): mean of k seeds"


def cross_tables(tables: Sequence[CrossTable]) -> list[Table]:
    """Return the tables as they are shown."""
    return [_shown(table) for table in tables]


def _shown(table: CrossTable) -> Table:
    unit = "×" if table.layout.columns == ("ratio_target",) else ""
    columns = [Column(", ".join(table.layout.rows)), *number_columns(*(f"{_name(key)}{unit}" for key in table.columns))]
    rows = [[_name(row), *(_text(table, table.entries.get((row, c))) for c in table.columns)] for row in table.rows]
    return Table(_title(table), columns, rows, legend=note(table.layout))


def cross_data(tables: Sequence[CrossTable]) -> Table:
    """Return one table of all: numbers in their own unit at full precision, with interval and seeds beside."""
    layout = tables[0].layout
    columns = list(dict.fromkeys(column for table in tables for column in table.columns))
    parts = ("", " low", " high", " seeds") if layout.value == "value" else ("", " seeds")
    names = ["table", *layout.rows, *(_name(column) + part for column in columns for part in parts)]
    rows = []
    for table in tables:
        for row in table.rows:
            cells: list[Any] = [table.title, *row]
            for column in columns:
                e = table.entries.get((row, column))
                numbers = () if e is None else (e.value, e.low, e.high, e.seeds)
                chosen = numbers if layout.value == "value" else numbers[:1] + numbers[3:]
                cells += chosen or [None] * len(parts)
            rows.append(cells)
    return Table("results", text_columns(*names), rows)
