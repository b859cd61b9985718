"""Tables of what bases mean: the tokens at both ends of each, in the terminal, Markdown, CSV, JSON and LaTeX."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..tables.writers import clean, inert, latex_table, markdown_table, markdown_text

if TYPE_CHECKING:
    from rich.console import Console

FORMATS = ("terminal", "markdown", "csv", "json", "latex")


class Token(NamedTuple):
    """A token's id, its visible text and its score."""

    id: int
    text: str
    score: float


@dataclass(frozen=True)
class TokenBasis:
    """One basis as tokens.

    Attributes:
        layer: counted from 0, None outside the layers.
        head: counted from 0, None for the whole matrix.
        side: ``left`` (written) or ``right`` (read).
        basis: counted from 0, the largest singular value first.
        value: the singular value; share: of the sum of the matrix's, or the head's.
        positive, negative: tokens at both ends, the strongest first.
        state: what became of it, where that is known.
    """

    module: str
    layer: int | None
    matrix: str
    head: int | None
    side: str
    basis: int
    value: float
    share: float
    positive: tuple[Token, ...]
    negative: tuple[Token, ...]
    state: str = ""


@dataclass(frozen=True)
class TokenView:
    """A table of bases with its title and notes."""

    title: str
    notes: tuple[str, ...]
    rows: tuple[TokenBasis, ...]


def render_bases(view: TokenView, console: Console) -> None:
    """Print the table."""
    from rich.text import Text

    console.print(Text(clean(view.title), style="bold"))
    console.print(bases_grid(view.rows))
    console.print(Text("\n".join(map(clean, view.notes)), style="dim"))


def bases_grid(rows: Sequence[TokenBasis]) -> object:
    """Return the table for a console."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    header, lines = _lines(rows)
    for name in header:
        text = name in ("+ tokens", "− tokens")
        grid.add_column(name, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    for line in lines:
        grid.add_row(*(Text(clean(cell)) for cell in line))
    return grid


def bases_markdown(view: TokenView) -> str:
    """Return the table as GitHub-flavoured Markdown."""
    header, lines = _lines(view.rows)
    align = "r" * (len(header) - 2) + "ll"
    parts = [f"### {markdown_text(view.title)}", markdown_table(header, lines, align), *map(markdown_text, view.notes)]
    return "\n\n".join(parts) + "\n"


def bases_latex(view: TokenView) -> str:
    """Return the table as LaTeX for booktabs; tokens beyond Latin script need XeLaTeX or LuaLaTeX."""
    header, lines = _lines(view.rows)
    columns = "r" * (len(header) - 2) + "p{0.36\\linewidth}p{0.36\\linewidth}"
    return latex_table(f"{view.title}. {' '.join(view.notes)}", header, lines, columns=columns) + "\n"


def bases_csv(view: TokenView) -> str:
    """Return one line a basis and token, values at full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("module", "layer", "matrix", "head", "side", "basis", "value", "share")
    states = any(row.state for row in view.rows)
    writer.writerow([*names, *(["state"] if states else []), "end", "place", "token_id", "token", "score"])
    for row in view.rows:
        base = [_blank(getattr(row, name)) for name in names] + ([row.state] if states else [])
        for end, tokens in (("plus", row.positive), ("minus", row.negative)):
            for place, token in enumerate(tokens):
                writer.writerow([*base, end, place, token.id, inert(clean(token.text)), token.score])
    return text.getvalue()


def bases_json(view: TokenView) -> str:
    """Return title, notes and bases as JSON."""
    rows = [basis_data(row) for row in view.rows]
    return json.dumps({"title": view.title, "notes": view.notes, "bases": rows}, ensure_ascii=False, indent=1) + "\n"


def basis_data(row: TokenBasis) -> dict[str, object]:
    """Return one basis as plain data."""
    ends = {name: [token._asdict() for token in getattr(row, name)] for name in ("positive", "negative")}
    return asdict(row) | ends


def _blank(value: object) -> object:
    return "" if value is None else value


def _lines(rows: Sequence[TokenBasis]) -> tuple[list[str], list[list[str]]]:
    """Return header and lines; rows without states are one matrix's, which the title names."""
    states = any(row.state for row in rows)
    header = ["", *(["layer", "matrix"] if states else []), "basis", "s", "% of Σs", "+ tokens", "− tokens"]
    lines = []
    for row in rows:
        where = ["" if row.layer is None else str(row.layer), row.matrix] if states else []
        numbers = [str(row.basis), f"{row.value:.4g}", f"{100 * row.share:.2f}"]
        ends = [" ".join(token.text for token in end) for end in (row.positive, row.negative)]
        lines.append([row.state, *where, *numbers, *ends])
    return (header, lines) if states else (header[1:], [line[1:] for line in lines])
