"""Tables for a terminal: within its width, whatever they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...foundation.text import fold_name, visible
from .table import Column, Field, Table
from .writers import with_notes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

_HEADS = (26, 15)
"""How wide the first column may be; the narrow one where it saves a block of columns."""
_WORD = 15
"""How wide a word of a heading may make its column."""
_LEAST = 8
"""What is left to a column whose texts are broken into lines, its margin included."""
_GAP = 2
_STYLES = {"best": "bold", "alarm": "bold red"}


def render(tables: Sequence[Table], console: Console, *, details: bool = True) -> None:
    """Print tables with their titles and notes.

    Fits consoles of 80 columns and more: details move below their texts, then columns of numbers to a further block.

    Args:
        tables: one below the other.
        console: where to.
        details: whether to print the fields' details.
    """
    from rich.text import Text

    for table, notes in with_notes(tables):
        console.print()
        if table.title:
            console.print(Text(visible(table.title), style="bold"))
        if table.lead:
            console.print(Text(visible(table.lead), style="dim"))
        for grid in _grids(table, console.width, details) if table.rows else ():
            console.print(grid)
        if notes:
            console.print()
            console.print(Text("\n".join(map(visible, notes)), style="dim"))


def _grids(table: Table, width: int, details: bool) -> list[Grid]:
    numbers = all(column.kind == "number" for column in table.columns[1:])
    if not numbers or table.columns[0].kind == "number":
        names = list(range(len(table.columns)))
        return [_grid(table, names, 0, " " if details else None, width)]
    layouts = [
        (head, joint, _blocks(table, width, head, joint))
        for joint in ((" ", "\n") if details else (None,))
        for head in _HEADS
    ]
    fewest = min(len(blocks) for *_, blocks in layouts)
    head, joint, blocks = next(layout for layout in layouts if len(layout[-1]) == fewest)
    return [_grid(table, [0, *block], head, joint, width) for block in blocks]


def _blocks(table: Table, width: int, head: int, joint: str | None) -> list[list[int]]:
    """Return the numbers of the columns of each block."""
    names = [fold_name(_shown(row[0], None), head) for row in table.fields]
    first = max(len(line) for name in names for line in name.split("\n"))
    blocks: list[list[int]] = [[]]
    room = width - first
    for number, column in enumerate(table.columns[1:], 1):
        need = _needed(column, [row[number] for row in table.fields], joint) + _GAP
        if room < need and blocks[-1]:
            blocks, room = [*blocks, []], width - first
        blocks[-1].append(number)
        room -= need
    return blocks


def _needed(column: Column, fields: Sequence[Field], joint: str | None) -> int:
    lines = [line for field in fields for line in _shown(field, joint).split("\n")]
    return max(map(len, [*lines, *_heading(column, lines).split("\n")]))


def _heading(column: Column, lines: Sequence[str]) -> str:
    """Return the title of a column of numbers, folded to the width of its cells."""
    title = visible(column.title)
    word = max(map(len, title.split()), default=0)
    return fold_name(title, max([min(_WORD, word), *map(len, lines)]))


def _shown(field: Field, joint: str | None) -> str:
    text = f"{field.mark} {field.text}" if field.mark else field.text
    return visible(text if joint is None or not field.detail else f"{text}{joint}{field.detail}")


def _grid(table: Table, chosen: Sequence[int], head: int, joint: str | None, width: int) -> Grid:
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.table import Table as Grid

    grid = Grid(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    # A column of names is not broken where it fits into half of the width, and all of them into the whole.
    names = {}
    for number in chosen[1 if head else 0 :]:
        texts = [_shown(row[number], joint) for row in table.fields]
        needed = max(map(cell_len, [table.columns[number].title, *texts]))
        if table.columns[number].kind != "number" and not any(" " in text for text in texts) and needed <= width // 2:
            names[number] = needed + 2
    whole = set(names) if sum(names.values()) + _LEAST * (len(chosen) - len(names)) <= width else set()
    for position, number in enumerate(chosen):
        column = table.columns[number]
        texts = [_shown(row[number], joint) for row in table.fields]
        if column.kind == "number":
            lines = [line for text in texts for line in text.split("\n")]
            grid.add_column(_text(_heading(column, lines)), justify="right", no_wrap=True)
        elif position == 0 and head:
            grid.add_column(_text(visible(column.title)), max_width=head, overflow="fold")
        else:
            grid.add_column(_text(visible(column.title)), overflow="fold", no_wrap=number in whole)
    block = len(chosen) < len(table.columns)
    shown = [n for n, row in enumerate(table.fields) if not block or any(row[i].whole for i in chosen[1:])]
    for number in shown:
        row = table.fields[number]
        cells = [_text(_shown(row[i], joint), _STYLES.get(row[i].kind, "")) for i in chosen]
        if head:
            cells[0] = _text(fold_name(_shown(row[0], None), head))
        ends = number in table.ruled and number != shown[-1]
        grid.add_row(*cells, style="italic" if number < table.pinned else "", end_section=ends)
    return grid


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(text, style=style)  # as markup, rich would drop the backslash of LaTeX's \[
