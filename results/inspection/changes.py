"""What became of the bases under a compression: counts per layer and matrix, and the single bases, in five formats."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..tables.writers import clean, inert, latex_table, markdown_table, markdown_text
from .bases import TokenBasis, TokenView, bases_grid, bases_latex, bases_markdown, basis_data

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

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
    found = [_counts(None if layer < 0 else layer, matrix, rows, view.trained) for layer, matrix, rows in groups]
    return [*found, _counts(None, "all", view.frame, view.trained)]


def _groups(frame: pd.DataFrame) -> Any:
    return frame.groupby(["layer", "matrix", "module"], sort=False)


def _counts(layer: int | None, matrix: str, rows: pd.DataFrame, trained: bool) -> Counts:
    number = {state: int((rows.state == state).sum()) for state in STATES}
    kept = rows.state.isin(["kept", "grew"])
    total = float(rows.before.sum())
    share = float(rows.before[kept].sum()) / total if total else math.nan
    after = float(rows.after.sum()) / total if total and trained else math.nan
    bases = len(rows) - number["new"]
    kinds = (number["grew"], number["died"], number["freed"], number["new"])
    return Counts(layer, matrix, bases, int(kept.sum()), *kinds, share, after)


def _table(view: ChangeView) -> tuple[list[str], list[list[str]]]:
    counts = count_changes(view)
    freed = any(c.freed for c in counts)
    header = ["layer", "matrix", "bases", "kept", "%", "% of Σs", "died"]
    header += ["grew", *(["freed"] if freed else []), "new", "Σs after, %"] if view.trained else []
    lines = []
    for c in counts:
        line = ["" if c.layer is None else str(c.layer), c.matrix, f"{c.bases:,}", f"{c.kept:,}"]
        line += [f"{100 * c.kept / c.bases:.1f}", f"{100 * c.share:.1f}", f"{c.died:,}"]
        if view.trained:
            line += [f"{c.grew:,}", *([f"{c.freed:,}"] if freed else []), f"{c.new:,}", f"{100 * c.after:.1f}"]
        lines.append(line)
    return header, lines


def render_changes(view: ChangeView, console: Console) -> None:
    """Print the counts and the most changed bases."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    header, lines = _table(view)
    console.print(Text(clean(view.title), style="bold"))
    grid = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for i, name in enumerate(header):
        grid.add_column(name.replace(" after", "\nafter"), justify="left" if i == 1 else "right", no_wrap=True)
    for i, line in enumerate(lines):
        layer_ends = i + 1 < len(lines) and lines[i + 1][0] != line[0]
        grid.add_row(*(Text(clean(cell)) for cell in line), end_section=layer_ends or i == len(lines) - 2)
    console.print(grid)
    if view.tokens:
        console.print()
        console.print(Text(_tokens(view).title, style="bold"))
        console.print(bases_grid(view.tokens))
    console.print(Text("\n".join(map(clean, view.notes)), style="dim"))


def changes_markdown(view: ChangeView) -> str:
    """Return both tables as GitHub-flavoured Markdown."""
    header, lines = _table(view)
    align = "rl" + "r" * (len(header) - 2)
    parts = [f"### {markdown_text(view.title)}", markdown_table(header, lines, align)]
    parts += [bases_markdown(_tokens(view)).rstrip("\n")] if view.tokens else []
    return "\n\n".join([*parts, *map(markdown_text, view.notes)]) + "\n"


def changes_latex(view: ChangeView) -> str:
    """Return both tables as LaTeX for booktabs."""
    header, lines = _table(view)
    columns = "rl" + "r" * (len(header) - 2)
    caption = f"{view.title}. {' '.join(view.notes)}"
    parts = [latex_table(caption, header, lines, len(lines) - 1, columns) + "\n"]
    return "\n".join([*parts, bases_latex(_tokens(view))] if view.tokens else parts)


def changes_csv(view: ChangeView) -> str:
    """Return one line a basis, at full precision; ``layer`` is empty outside the layers."""
    frame = view.frame.assign(
        layer=view.frame.layer.astype("object").where(view.frame.layer >= 0, ""),
        module=view.frame.module.map(lambda text: inert(clean(text))),
        matrix=view.frame.matrix.map(lambda text: inert(clean(text))),
    )
    return str(frame.to_csv(index=False, lineterminator="\n"))


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


def _tokens(view: ChangeView) -> TokenView:
    grew = "bases whose s grew most, and " if any(row.state.startswith("grew") for row in view.tokens) else ""
    return TokenView(f"{grew}the largest that died", (), view.tokens)


def frame_of(rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    """Return the frame of `ChangeView` from lines in the order of `COLUMNS`."""
    import pandas as pd

    return pd.DataFrame(rows, columns=list(COLUMNS))
