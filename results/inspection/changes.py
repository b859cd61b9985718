"""What became of the bases under a compression: counts per layer and matrix, and the single bases, in five formats."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..tables.table import Cell, Column, Table, by_label, number_columns, text_columns
from .bases import TokenBasis, TokenView, bases_table, basis_data

if TYPE_CHECKING:
    import pandas as pd

STATES = ("kept", "grew", "died", "freed", "new")
COLUMNS = ("module", "layer", "matrix", "basis", "before", "after", "state")
"""Of the frame in `ChangeView`; ``layer`` is -1 outside the layers, ``before`` and ``after`` are NaN where there is
none. ``kept`` excludes those that ``grew``; ``new`` vectors are counted from 0 in ``basis``."""


@dataclass(frozen=True)
class ChangeView:
    """All bases of a compressed model, and the tokens of the most changed ones.

    Attributes:
        title, notes: for people.
        name: short, for a file: label, ratio, and what was chosen.
        frame: one line a basis, see `COLUMNS`.
        trained: whether the method trained the bases' singular values.
        tokens: bases that grew most, then the largest that died.
    """

    title: str
    name: str
    notes: tuple[str, ...]
    frame: pd.DataFrame
    trained: bool
    tokens: tuple[TokenBasis, ...]


@dataclass(frozen=True)
class Counts:
    """One matrix, or all together: how many bases there were, and what became of them.

    Attributes:
        layer: None outside the layers, and in the sum over all.
        bases: before; kept (those that grew included) + died + freed.
        new: vectors that training added.
        share: of Σs before that the kept bases held.
        after: Σs of kept bases and new vectors after, as a share of Σs before; NaN where the method trains no bases.
    """

    layer: int | None
    matrix: str
    bases: int
    kept: int
    grew: int
    died: int
    freed: int
    new: int
    share: float
    after: float


def count_changes(view: ChangeView) -> list[Counts]:
    """Return the counts of every matrix in the model's order, then of all together."""
    groups = [(int(layer), str(matrix), rows) for (layer, matrix, _), rows in _groups(view.frame)]
    counts = [_counts(None if layer < 0 else layer, matrix, rows, view.trained) for layer, matrix, rows in groups]
    return [*counts, _counts(None, "all", view.frame, view.trained)]


def _groups(frame: pd.DataFrame) -> Any:
    return frame.groupby(["layer", "matrix", "module"], sort=False)


def _counts(layer: int | None, matrix: str, rows: pd.DataFrame, trained: bool) -> Counts:
    number = {state: int((rows.state == state).sum()) for state in STATES}
    remaining = rows.state.isin(["kept", "grew"])
    total = float(rows.before.sum())
    share = float(rows.before[remaining].sum()) / total if total else math.nan
    after = float(rows.after.sum()) / total if total and trained else math.nan
    bases = len(rows) - number["new"]
    kinds = (number["grew"], number["died"], number["freed"], number["new"])
    return Counts(layer, matrix, bases, int(remaining.sum()), *kinds, share, after)


def changes_tables(view: ChangeView) -> list[Table]:
    """Return the counts, and the most changed bases, as they are shown."""
    tokens = TokenView(_title_of_tokens(view), (), view.tokens)
    return [_counts_table(view), *([bases_table(tokens)] if view.tokens else [])]


def changes_data(view: ChangeView) -> Table:
    """Return one row a basis, at full precision; ``layer`` is empty outside the layers."""
    rows = [
        [None if name == "layer" and row[name] == -1 else row[name] for name in COLUMNS]
        for row in view.frame.to_dict("records")
    ]
    return Table(view.title, text_columns(*COLUMNS), rows)


def _counts_table(view: ChangeView) -> Table:
    counts = count_changes(view)
    freed = any(c.freed for c in counts)
    columns = [Column("layer"), Column("matrix"), *number_columns("bases", "kept", format="{:,}")]
    columns += [*number_columns("%", "% of Σs", format="{:.1f}"), *number_columns("died", format="{:,}")]
    if view.trained:
        columns += number_columns("grew", *(["freed"] if freed else []), "new", format="{:,}")
        columns += number_columns("Σs after, %", format="{:.1f}")
    rows = []
    for c in counts:
        row: list[Cell] = ["" if c.layer is None else str(c.layer), c.matrix, c.bases, c.kept]
        row += [100 * c.kept / c.bases, 100 * c.share, c.died]
        row += [c.grew, *([c.freed] if freed else []), c.new, 100 * c.after] if view.trained else []
        rows.append(row)
    table = by_label(Table(view.title, columns, rows, notes=view.notes))
    return replace(table, rules=[*table.rules, len(rows) - 2])


def changes_json(view: ChangeView) -> str:
    """Return counts, bases and tokens as JSON; a missing number is null."""
    counts = [{k: _null(v) for k, v in vars(c).items()} for c in count_changes(view)]
    bases = [{k: _null(v) for k, v in row.items()} for row in view.frame.to_dict("records")]
    for row in bases:
        row["layer"] = None if row["layer"] == -1 else row["layer"]
    tokens = [basis_data(row) for row in view.tokens]
    data = {"title": view.title, "notes": view.notes, "matrices": counts, "bases": bases, "tokens": tokens}
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"


def _null(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _title_of_tokens(view: ChangeView) -> str:
    grew = "bases whose s grew most, and " if any(row.state.startswith("grew") for row in view.tokens) else ""
    return f"{grew}the largest that died"


def frame_of(rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    """Return the frame of `ChangeView` from lines in the order of `COLUMNS`."""
    import pandas as pd

    return pd.DataFrame(rows, columns=list(COLUMNS))
