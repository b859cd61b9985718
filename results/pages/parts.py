"""What pages are made of: tables and figures as plain data, drawn by the macros in ``templates/parts.html``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from markupsafe import Markup


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its heading.
        kind: ``number`` aligns right and sorts by number.
        help: one sentence, shown as the heading's tooltip.
        group: what a page's filter may hide the column by, such as a ratio band; empty for none.
        sortable: whether the heading sorts.
        first: the direction of the first click.
        sorted: the direction in which the rows are sorted by this column already; empty if they are not.
    """

    title: str
    kind: Literal["text", "number"] = "text"
    help: str = ""
    group: str = ""
    sortable: bool = True
    first: Literal["ascending", "descending"] = "ascending"
    sorted: Literal["", "ascending", "descending"] = ""


@dataclass(frozen=True)
class Field:
    """A cell of a table.

    Attributes:
        text: what is shown.
        sort: number to sort by where the text is none; None leaves an empty cell last in either direction.
        detail: smaller text behind it, such as an interval.
        mark: a word or sign in front of it, such as a rank.
        to: id of the element on the same page that it leads to; empty for none.
        kind: class of the cell for the style, such as ``best``.
    """

    text: str
    sort: float | None = None
    detail: str = ""
    mark: str = ""
    to: str = ""
    kind: str = ""


@dataclass(frozen=True)
class TableView:
    """A table; its first column holds the rows' headings.

    Attributes:
        id: unique on the page.
        caption: what it shows, for everyone.
        rows: fields or plain texts; a row's own id and filter text come from ``row_ids`` and the first field.
        pinned: how many rows stay on top when the table is sorted.
        note: what is below it.
    """

    id: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Field | str]]
    row_ids: Sequence[str] = ()
    pinned: int = 0
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A picture with its caption and its text alternative.

    Attributes:
        svg: inline SVG of our own making (`charts`).
        caption: what it shows and what to read off it.
        data: the numbers behind it, below the picture in a table that opens; None where a table beside it has them.
    """

    svg: Markup
    caption: str
    data: TableView | None = field(default=None)
