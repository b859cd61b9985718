"""The leaderboard as CSV, Markdown, LaTeX and in the terminal; hostile text stays text in all four."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..pages.shell import shorten
from ..tables.pivot import direction, format_cell
from ..tables.writers import clean, inert, latex_table, latex_text, markdown_table, markdown_text
from .bands import band_name
from .boards import Board, Entry
from .ranking import LEVEL

if TYPE_CHECKING:
    from rich.console import Console

LEGEND = (
    "Rank first: 1 is the best estimate of its column; ≈1 is tied with it: not shown to be worse by a paired test over "
    f"problems (p ≥ {LEVEL:g} after Holm's correction for all pairs of the column); a larger number is worse, and "
    "counts the better estimates; ? was not tested, because samples are missing; – falls short of the ratio, or "
    "no prompt fits the model, and is not ranked. † counts prompts that did not fit as not solved. The tests are "
    "about these trained models on such problems, not about other seeds."
)
_LABEL = 60

COLUMNS = (
    *("board", "model", "model_sha256", "task", "benchmark", "variant", "metric", "scorer", "n", "engine", "dtype"),
    *("dataset_sha256", "prompt_sha256", "direction", "label", "origin", "stage", "band", "ratio_target", "ratio"),
    *("value", "low", "high", "confidence", "seeds", "rank", "tied_with_best", "p_adjusted", "p_value", "test"),
    *("remark", "params", "bytes", "tokens_after_finetune", "tokens_per_second", "run", "options", "hardware"),
    *("versions", "git_commit", "evaluated_at", "stage_keys"),
)
"""Columns of the CSV: a line an entry; ``board`` is the same for equal conditions only."""


def to_csv(boards: Sequence[Board]) -> str:
    """Return one line for each entry with its conditions, standing and provenance, at full precision.

    Texts that a spreadsheet would run as a formula get a leading apostrophe.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for board in boards:
        for entry in (*board.references, *board.entries):
            writer.writerow([inert(clean(x)) if isinstance(x, str) else x for x in _line(board, entry)])
        for _, entry in board.elsewhere:
            writer.writerow([inert(clean(x)) if isinstance(x, str) else x for x in _line(board, entry, elsewhere=True)])
    return text.getvalue()


def to_markdown(boards: Sequence[Board]) -> str:
    """Return a table for each board as GitHub-flavoured Markdown."""
    parts = [markdown_text(LEGEND)]
    for board in boards:
        parts.append(f"### {markdown_text(board.title)}")
        parts.append(markdown_text(f"{board.conditions}; {_direction(board)}."))
        if board.entries:
            parts.append(markdown_table(_header(board), _grid(board)))
        if references := _references(board):
            parts.append(markdown_text(references))
    return "\n\n".join(parts) + "\n"


def to_latex(boards: Sequence[Board]) -> str:
    """Return a table for each board in LaTeX for the package booktabs; the legend is a comment of the first lines."""
    parts = ["% Needs \\usepackage{booktabs}.", f"% {latex_text(LEGEND)}"]
    for board in boards:
        if board.entries:
            references = f" {_references(board)}" if board.references or board.elsewhere else ""
            caption = f"{board.title}: {board.conditions}; {_direction(board)}.{references}"
            parts.append(latex_table(caption, _header(board), _grid(board), 0))
    return "\n\n".join(parts) + "\n"


def render_terminal(boards: Sequence[Board], console: Console, most: int = 12) -> None:
    """Print the first boards, rank and value only.

    Args:
        boards: all of them.
        console: at least 60 columns wide.
        most: how many to print; a line says how many are left.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    for board in boards[:most]:
        console.print()
        console.print(Text(clean(board.title), style="bold"))
        console.print(Text(clean(f"{board.conditions}; {_direction(board)}"), style="dim"))
        if board.entries:
            grid = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
            grid.add_column("", overflow="fold", max_width=30)
            for band in board.bands:
                grid.add_column(band_name(band), justify="right")
            for label, row in board.rows():
                cells = [_short(board, row.get(band)) for band in board.bands]
                grid.add_row(Text(clean(shorten(label, _LABEL))), *map(Text, cells))
            console.print(grid)
        if references := _references(board):
            console.print(Text(clean(references), style="dim"))
    console.print()
    if len(boards) > most:
        console.print(f"{len(boards) - most} more boards are in the files.")
    console.print(Text(LEGEND, style="dim"))


def standing_text(entry: Entry) -> str:
    """Return in words how an entry was tested against the best of its column."""
    standing = entry.standing
    if standing is None:
        return "uncompressed"
    if standing.best:
        return "best estimate of its column" + (f"; {standing.reason}" if standing.reason else "")
    if standing.tied is None:
        return standing.reason
    outcome = "not shown to be worse than the best" if standing.tied else "worse than the best"
    return f"{outcome}, {p_text(standing.p_adjusted, standing.bound)} ({standing.test})"


def p_text(p: float, bound: bool = False) -> str:
    """Return ``p = 0.031``, ``p ≤ 0.005`` for an upper bound, or ``p < 0.0001``."""
    return "p < 0.0001" if p < 1e-4 else f"p {'≤' if bound else '='} {p:.2g}"


def _line(board: Board, entry: Entry, elsewhere: bool = False) -> list[object]:
    table, cell, source = board.table, entry.cell, entry.provenance
    standing = entry.standing
    remark = "measured under another variant" if elsewhere else standing.reason if standing else ""
    return [
        *(board.id, table.model, board.model_sha256, table.task, table.benchmark, table.variant, table.metric),
        *(table.scorer, table.n, table.engine, table.dtype, board.dataset_sha256, board.prompt_sha256),
        *(_direction(board), entry.label, entry.origin or "measured", entry.stage),
        *("" if entry.uncompressed else entry.band, entry.target, cell.ratio, cell.value, cell.low, cell.high),
        *(table.confidence, source.seeds, (standing.rank or "") if standing else ""),
        "" if standing is None or standing.tied is None else str(standing.tied).lower(),
        *(_number(standing.p_adjusted if standing else math.nan), _number(standing.p_value if standing else math.nan)),
        *(standing.test if standing else "", remark, cell.params, cell.bytes, cell.tokens),
        "; ".join(f"{name}: {value:.6g}" for name, value in sorted(entry.speeds.items())),
        *(source.run, source.options, source.hardware, source.versions, source.commit, source.evaluated_at),
        source.stage_keys,
    ]


def _number(value: float) -> object:
    return "" if math.isnan(value) else value


def _direction(board: Board) -> str:
    return direction(board.table.metric, board.table.higher_is_better)


def _header(board: Board) -> list[str]:
    return ["", *map(band_name, board.bands)]


def _grid(board: Board) -> list[list[str]]:
    return [
        [shorten(label, _LABEL), *(_text(board, row.get(band)) for band in board.bands)] for label, row in board.rows()
    ]


def _text(board: Board, entry: Entry | None) -> str:
    if entry is None or entry.standing is None:
        return ""
    value, interval = format_cell(board.table.metric, entry.cell)
    return f"({entry.standing.mark}) {value} {interval}"


def _short(board: Board, entry: Entry | None) -> str:
    if entry is None or entry.standing is None:
        return ""
    return f"{format_cell(board.table.metric, entry.cell)[0]} {entry.standing.mark:>3}"


def _references(board: Board) -> str:
    texts = [
        f"{shorten(entry.label, _LABEL)}{where} {' '.join(format_cell(board.table.metric, entry.cell))}"
        for where, entry in (
            *(("", entry) for entry in board.references),
            *((f", {variant}", entry) for variant, entry in board.elsewhere),
        )
    ]
    return f"For reference: {'; '.join(texts)}." if texts else ""
