"""How commands print: text of models and other people's files stays text, whatever the terminal and its encoding."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..foundation.errors import UserError
from ..foundation.text import visible

if TYPE_CHECKING:
    from rich.console import Console

    from ..results.tables.table import Table

_FILE_WIDTH = 1000
"""Columns where standard output is no terminal: nothing is wrapped there, so that names stay whole."""


class _CheckedFile(io.FileIO):
    """A file descriptor that remembers a failed write instead of raising it, so that no work is lost for a message."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write, or drop what cannot be written; a closed pipe is raised."""
        try:
            return super().write(data) or 0
        except (BrokenPipeError, BlockingIOError):
            raise
        except OSError as error:
            self.failure = error
            return len(memoryview(data).cast("B"))


class Streams:
    """Standard output that takes every character and that may be full; standard error likewise."""

    def __init__(self) -> None:
        self._file: _CheckedFile | None = None
        if sys.stdout is None:  # closed by the shell: >&-
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        elif sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.flush()
            self._file = _CheckedFile(sys.stdout.fileno(), "w", closefd=False)
            sys.stdout = io.TextIOWrapper(
                io.BufferedWriter(self._file),
                encoding=sys.stdout.encoding,
                errors="backslashreplace",
                line_buffering=sys.stdout.line_buffering,
            )

    def close(self) -> str:
        """Write what waits; return why standard output did not take all of it, or the empty string."""
        sys.stdout.flush()
        return "" if self._file is None or self._file.failure is None else str(self._file.failure.strerror)


def print_name_note(model: str, revision: str | None = None) -> None:
    """Print on standard error what a model's name was taken for, where it could mean something else."""
    from ..models.presets import other_meaning

    if note := other_meaning(model, revision):
        console(stderr=True).print(f"[yellow]note:[/yellow] {escape(note)}", highlight=False, soft_wrap=True)


def console(stderr: bool = False) -> Console:
    """Return a console on standard output or standard error; it shows control characters instead of sending them."""
    from collections.abc import Iterable

    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class SafeConsole(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(visible(segment.text), segment.style)

    screen = SafeConsole(stderr=stderr)
    if not screen.is_terminal and "COLUMNS" not in os.environ:
        screen.width = _FILE_WIDTH
    return screen


def escape(text: str) -> str:
    """Protect text that is not markup, and make its control characters visible."""
    from rich.markup import escape

    return escape(visible(text))


def print_text(text: str) -> None:
    """Print text as it is but for control characters, which become visible."""
    sys.stdout.write(visible(text) + "\n")


def print_rows(title: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table of texts."""
    from ..results.tables.table import Table, text_columns

    print_tables([Table(title, text_columns(*columns), rows)])


def print_tables(tables: Sequence[Table], format: str = "terminal") -> None:
    """Print tables, or write them to standard output as ``markdown``, ``csv`` or ``latex``."""
    if format == "terminal":
        from ..results.tables.terminal import render

        render(tables, console())
    else:
        from ..results.tables.writers import WRITERS

        sys.stdout.write(WRITERS[format](tables))


def split_list(text: str | None) -> list[str] | None:
    """Split at commas; None stays None.

    Raises:
        UserError: there is nothing between the commas.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UserError(
            f"the list '{text}' is empty; write its items with commas, such as a,b, or leave the option out"
        )
    return parts


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
