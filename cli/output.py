"""How commands print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..foundation.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console


def console(stderr: bool = False) -> Console:
    """Return a console on standard output or standard error."""
    from rich.console import Console

    return Console(stderr=stderr)


def escape(text: str) -> str:
    """Protect text that is not markup."""
    from rich.markup import escape

    return escape(text)


def print_rows(title: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a plain table."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console().print(table)


def split_list(text: str | None) -> list[str] | None:
    """Split at commas; None stays None."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def numbers(kind: str, text: str | None, convert: type[float] | type[int], example: str) -> list[Any] | None:
    """Read numbers with commas; a ratio may end in x.

    Raises:
        UserError: one of them is no number; names the kind and shows the example.
    """
    values = []
    for part in split_list(text) or []:
        try:
            values.append(convert(part.removesuffix("x") if kind == "ratio" else part))
        except ValueError:
            raise UserError(f"the {kind} '{part}' is not a number; write them with commas, such as {example}") from None
    return None if text is None else values
