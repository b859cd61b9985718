"""One table: `writers` makes it CSV, Markdown and LaTeX, `html` a part of a page, `terminal` prints it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias

from .escape import clean, inert

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its heading.
        kind: ``number`` aligns right and sorts by number.
        help: one sentence, shown as the heading's tooltip.
        format: how a plain number is shown, such as ``{:,}``.
        width: of a column of long texts: which share of a line it may take, below 1; 0 where lines need no breaks.
        group: what a page's filter may hide the column by, such as a ratio band; empty for none.
        sortable: whether the heading sorts.
        first: the direction of the first click.
        sorted: the direction in which the rows are sorted by this column already; empty if they are not.
    """

    title: str
    kind: Literal["text", "number"] = "text"
    help: str = ""
    format: str = "{}"
    width: float = 0.0
    group: str = ""
    sortable: bool = True
    first: Literal["ascending", "descending"] = "ascending"
    sorted: Literal["", "ascending", "descending"] = ""


@dataclass(frozen=True)
class Field:
    """A cell of a table.

    Attributes:
        text: what is shown.
        value: the number behind it, which it is sorted by; None leaves an empty cell last in either direction.
        detail: smaller text behind it, such as an interval.
        mark: a word or sign in front of it, such as a rank.
        to: id of the element on the same page that it leads to; empty for none.
        kind: what it is emphasised as, such as ``best``; a class of the cell on a page.
    """

    text: str
    value: float | None = None
    detail: str = ""
    mark: str = ""
    to: str = ""
    kind: str = ""

    @property
    def whole(self) -> str:
        """Mark, text and detail in one line."""
        return " ".join(filter(None, [self.mark, self.text, self.detail])).replace("\n", " ")


Cell: TypeAlias = Field | str | float | bool | None
"""None is an empty cell; a number is shown in its column's format."""


@dataclass(frozen=True)
class Table:
    """A table; its first column holds the rows' headings.

    Attributes:
        title: what it shows.
        columns, rows: as many cells a row as there are columns.
        id: unique on a page; not needed elsewhere.
        row_ids: of the rows on a page.
        lead: under which conditions; is between title and table, except on a page.
        notes: what is below it.
        legend: how to read the cells; below it too, but neighbours with one legend show it once.
        pinned: how many rows stay on top when the table is sorted; they are set apart.
        rules: numbers of rows that a line follows.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    id: str = ""
    row_ids: Sequence[str] = ()
    lead: str = ""
    notes: Sequence[str] = ()
    legend: str = ""
    pinned: int = 0
    rules: Collection[int] = ()

    @cached_property
    def fields(self) -> list[list[Field]]:
        """All cells as fields."""
        return [[_field(cell, column) for cell, column in zip(row, self.columns, strict=True)] for row in self.rows]

    @property
    def below(self) -> list[str]:
        """Notes and legend."""
        return [*self.notes, *([self.legend] if self.legend else [])]

    @property
    def ruled(self) -> set[int]:
        """Numbers of the rows that a line follows; never the last one."""
        return {row for row in (*self.rules, self.pinned - 1) if 0 <= row < len(self.rows) - 1}

    def frame(self) -> pd.DataFrame:
        """Return the table as a frame of objects: numbers at full precision where there are any, else texts.

        Texts hold no control characters, and none is a formula to a spreadsheet. A first column without a heading has
        the table's title.
        """
        import pandas as pd

        rows = [[_plain(cell) for cell in row] for row in self.rows]
        titles = [self.columns[0].title or self.title, *(column.title for column in self.columns[1:])]
        return pd.DataFrame(rows, columns=[inert(clean(title)) for title in titles], dtype=object)


def text_columns(*titles: str) -> list[Column]:
    """Return columns of texts."""
    return [Column(title) for title in titles]


def number_columns(*titles: str, format: str = "{}") -> list[Column]:
    """Return columns of numbers."""
    return [Column(title, "number", format=format) for title in titles]


def by_label(table: Table) -> Table:
    """Return the table with a line wherever the first cell changes."""
    heads = [row[0].whole for row in table.fields]
    return replace(table, rules=[number for number in range(len(heads) - 1) if heads[number] != heads[number + 1]])


def _field(cell: Cell, column: Column) -> Field:
    if isinstance(cell, Field):
        return cell
    if cell is None or isinstance(cell, str):
        return Field(cell or "")
    return Field(column.format.format(cell), float(cell))


def _plain(cell: Cell) -> object:
    if isinstance(cell, Field):
        return inert(clean(cell.whole)) if cell.value is None else cell.value
    return inert(clean(cell or "")) if cell is None or isinstance(cell, str) else cell
