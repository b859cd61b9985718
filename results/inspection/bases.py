"""Tables of what bases mean: the tokens at both ends of each, in the terminal, Markdown, CSV, JSON and LaTeX."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import NamedTuple

from ..tables.table import Cell, Column, Table, number_columns, text_columns

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


def bases_table(view: TokenView) -> Table:
    """Return the table as it is shown; rows without states are one matrix's, which the title names."""
    states = any(row.state for row in view.rows)
    columns = [*([Column(""), Column("layer", "number"), Column("matrix")] if states else [])]
    columns += [*number_columns("basis"), *number_columns("s", format="{:.4g}")]
    columns += number_columns("% of Σs", format="{:.2f}")
    columns += [Column(f"{sign} tokens", width=0.36) for sign in "+−"]
    rows: list[list[Cell]] = []
    for row in view.rows:
        ends = [" ".join(token.text for token in end) for end in (row.positive, row.negative)]
        start = [row.state, row.layer, row.matrix] if states else []
        rows.append([*start, row.basis, row.value, 100 * row.share, *ends])
    return Table(view.title, columns, rows, notes=view.notes)


def bases_data(view: TokenView) -> Table:
    """Return one row a basis and token, values at full precision."""
    names = ["module", "layer", "matrix", "head", "side", "basis", "value", "share"]
    names += ["state"] if any(row.state for row in view.rows) else []
    rows = [
        [*(getattr(row, name) for name in names), end, rank, token.id, token.text, token.score]
        for row in view.rows
        for end, tokens in (("plus", row.positive), ("minus", row.negative))
        for rank, token in enumerate(tokens)
    ]
    return Table(view.title, text_columns(*names, "end", "place", "token_id", "token", "score"), rows)


def bases_json(view: TokenView) -> str:
    """Return title, notes and bases as JSON."""
    rows = [basis_data(row) for row in view.rows]
    return json.dumps({"title": view.title, "notes": view.notes, "bases": rows}, ensure_ascii=False, indent=1) + "\n"


def basis_data(row: TokenBasis) -> dict[str, object]:
    """Return one basis as plain data."""
    ends = {name: [token._asdict() for token in getattr(row, name)] for name in ("positive", "negative")}
    return asdict(row) | ends
