"""The leaderboard as CSV, Markdown, LaTeX and in the terminal; hostile text stays text in all four."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..tables import writers
from ..tables.escape import latex_text, markdown_text
from ..tables.names import shorten_all
from ..tables.pivot import direction, format_cell
from ..tables.table import Cell, Column, Field, Table, number_columns, text_columns
from ..tables.terminal import render
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
    *(
        "steps_budget",
        "value",
        "low",
        "high",
        "confidence",
        "seeds",
        "rank",
        "tied_with_best",
        "p_adjusted",
        "p_value",
        "test",
    ),
    *("remark", "params", "bytes", "tokens_after_finetune", "tokens_per_second", "run", "options", "hardware"),
    *("versions", "git_commit", "evaluated_at", "stage_keys"),
)
"""Columns of the CSV: a line an entry; ``board`` is the same for equal conditions only."""


def to_csv(boards: Sequence[Board]) -> str:
    """Return one line for each entry with its conditions, standing and provenance, at full precision.

    Texts that a spreadsheet would run as a formula get a leading apostrophe.
    """
    rows: list[list[Cell]] = []
    for board in boards:
        rows += [_line(board, entry) for entry in (*board.references, *board.entries)]
        rows += [_line(board, entry, variant) for variant, entry in board.elsewhere]
    return writers.to_csv([Table("leaderboard", text_columns(*COLUMNS), rows)])


def to_markdown(boards: Sequence[Board]) -> str:
    """Return a table for each board as GitHub-flavoured Markdown."""
    return f"{markdown_text(LEGEND)}\n\n{writers.to_markdown([_table(board) for board in boards])}"


def to_latex(boards: Sequence[Board]) -> str:
    """Return a table for each board in LaTeX for the package booktabs; the legend is a comment of the first lines."""
    tables = writers.to_latex([_table(board) for board in boards])
    return f"% Needs \\usepackage{{booktabs}}.\n\n% {latex_text(LEGEND)}\n\n{tables}"


def render_terminal(boards: Sequence[Board], console: Console, most: int = 12) -> None:
    """Print the first boards, rank and value only.

    Args:
        boards: all of them.
        console: at least 60 columns wide.
        most: how many to print; a line says how many are left.
    """
    from rich.text import Text

    render([_table(board) for board in boards[:most]], console, details=False)
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


def board_note(board: Board) -> str:
    """Return what a reader of a board should know as a sentence, or the empty string."""
    return f"The {board.note}." if board.note else ""


def _line(board: Board, entry: Entry, elsewhere: str = "") -> list[Cell]:
    table, cell, source = board.table, entry.cell, entry.provenance
    standing = entry.standing
    remark = "measured under another variant" if elsewhere else standing.reason if standing else ""
    return [
        *(board.id, table.model, board.model_sha256, table.task, table.benchmark, elsewhere or table.variant),
        *(table.metric, table.scorer, table.n, table.engine, table.dtype, board.dataset_sha256, board.prompt_sha256),
        *(_direction(board), entry.label, entry.origin or "measured", entry.stage),
        *("" if entry.uncompressed else entry.band, entry.target, cell.ratio, source.budget),
        *(cell.value, cell.low, cell.high),
        *(table.confidence, source.seeds, (standing.rank or "") if standing else ""),
        "" if standing is None or standing.tied is None else str(standing.tied).lower(),
        *(_number(standing.p_adjusted if standing else math.nan), _number(standing.p_value if standing else math.nan)),
        *(standing.test if standing else "", remark, cell.params, cell.bytes, cell.tokens),
        "; ".join(f"{name}: {value:.6g}" for name, value in sorted(entry.speeds.items())),
        *(source.run, source.options, source.hardware, source.versions, source.commit, source.evaluated_at),
        source.stage_keys,
    ]


def _number(value: float) -> Cell:
    return "" if math.isnan(value) else value


def _direction(board: Board) -> str:
    return direction(board.table.metric, board.table.higher_is_better)


def _table(board: Board) -> Table:
    columns = [Column(""), *number_columns(*map(band_name, board.bands))]
    names = shorten_all([label for label, _ in board.rows()], _LABEL)
    rows: list[list[Cell]] = [
        [names[label], *(_field(board, row.get(band)) for band in board.bands)] for label, row in board.rows()
    ]
    lead = f"{board.conditions}; {_direction(board)}"
    return Table(
        board.title, columns, rows, lead=lead, notes=list(filter(None, [_references(board), board_note(board)]))
    )


def _field(board: Board, entry: Entry | None) -> Field:
    if entry is None or entry.standing is None:
        return Field("")
    value, interval = format_cell(board.table.metric, entry.cell)
    return Field(value, entry.cell.value, interval, f"({entry.standing.mark})")


def _references(board: Board) -> str:
    references = [("", entry) for entry in board.references]
    references += [(f", {variant}", entry) for variant, entry in board.elsewhere]
    names = shorten_all([entry.label for _, entry in references], _LABEL)
    texts = [
        f"{names[entry.label]}{position} {' '.join(format_cell(board.table.metric, entry.cell))}"
        for position, entry in references
    ]
    return f"For reference: {'; '.join(texts)}." if texts else ""
