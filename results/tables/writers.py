"""Tables of records in the terminal, Markdown, CSV and LaTeX; hostile text stays text in all four."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from ...foundation.text import fold_name
from .pivot import Cell, Row, Table, format_cell, pivot

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.text import Text

__all__ = ["pivot", "render_terminal", "to_csv", "to_latex", "to_markdown"]

_DETAILS = ("target", "achieved", "kept", "matrices", "params", "size", "tokens after finetune")
_LABEL_WIDTH = 15
_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "·": r"\textperiodcentered{}", "×": r"$\times$", "∞": r"$\infty$"},
    **{"\N{OPEN BOX}": r"\textvisiblespace{}", "Σ": r"$\Sigma$", "−": "$-$"},
    **{"≈": r"$\approx$", "≥": r"$\ge$", "–": "--", "†": r"$\dagger$"},
}


def render_terminal(frame: pd.DataFrame, console: Console, headline: bool = True) -> None:
    """Print one table for each task and benchmark variant, then sizes and training budgets of every cell.

    Fits consoles of 80 columns and more: intervals move below their values, then ratios to a further block.
    """
    from rich.text import Text

    tables = pivot(frame, headline)
    for key, group in _by_model(tables):
        for table in group:
            console.print()
            console.print(Text(clean(table.title), style="bold"))
            if table.compressed:
                for block in _blocks(table, console.width):
                    console.print(block)
            else:
                console.print(Text("\n".join(clean(f"{row.label}: {_text(table, row, 1.0)}") for row in table.rows)))
        console.print()
        console.print(Text(_note(group), style="dim"))
        if rows := _detail_rows(group, exact=console.width >= 100):
            console.print()
            console.print(Text(clean(f"{key[0]} · {key[1]}: sizes and training tokens"), style="bold"))
            console.print(_detail_table(rows))


def to_markdown(frame: pd.DataFrame, headline: bool = True) -> str:
    """Return the tables as GitHub-flavoured Markdown."""
    parts = []
    for key, group in _by_model(pivot(frame, headline)):
        for table in group:
            parts += [f"### {markdown_text(table.title)}", markdown_table(_header(table), _grid(table))]
        parts.append(markdown_text(_note(group)))
        if rows := _detail_rows(group):
            parts += [f"### {markdown_text(f'{key[0]} · {key[1]}: sizes and training tokens')}"]
            parts.append(markdown_table(["", *_DETAILS], rows))
    return "\n\n".join(parts) + "\n"


def to_latex(frame: pd.DataFrame, headline: bool = True) -> str:
    """Return the tables as LaTeX for the package booktabs, one ``table`` environment each."""
    parts = []
    for key, group in _by_model(pivot(frame, headline)):
        for table in group:
            split = sum(row.uncompressed for row in table.rows)
            parts.append(latex_table(f"{table.title}. {_note([table])}", _header(table), _grid(table), split))
        if rows := _detail_rows(group):
            caption = f"{key[0]} · {key[1]}: sizes and training tokens."
            parts.append(latex_table(caption, ["", *_DETAILS], rows, 0))
    return "\n\n".join(parts) + "\n"


def to_csv(frame: pd.DataFrame, headline: bool = True) -> str:
    """Return the pivot as CSV: one line a row of a table; per ratio the value, interval, seeds and achieved ratio.

    Values are in the metric's own unit at full precision; cells that a spreadsheet would run as a formula get a leading
    apostrophe.
    """
    tables = pivot(frame, headline)
    ratios = sorted({ratio for table in tables for ratio in table.ratios})
    names = ("model", "task", "benchmark", "variant", "metric", "scorer", "n", "engine", "dtype", "data")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{r:g}x{part}" for r in ratios for part in ("", " low", " high", " seeds", " achieved ratio")]
    writer.writerow([*names, "label", *columns])
    for table in tables:
        for row in table.rows:
            cells: list[object] = [getattr(table, name) for name in names]
            for ratio in ratios:
                c = row.cells.get(ratio)
                cells += ["", "", "", "", ""] if c is None else [c.value, c.low, c.high, len(c.seeds), c.ratio]
            cells.insert(len(names), row.label)
            writer.writerow([inert(clean(cell)) if isinstance(cell, str) else cell for cell in cells])
    return text.getvalue()


def clean(text: str) -> str:
    """Return text without control characters (a terminal would obey them); each becomes a replacement character."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def inert(text: str) -> str:
    """Return text that a spreadsheet does not run as a formula."""
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") else text


def _by_model(tables: Sequence[Table]) -> Iterable[tuple[tuple[str, str], list[Table]]]:
    groups: dict[tuple[str, str], list[Table]] = {}
    for table in tables:
        groups.setdefault((table.model, table.task), []).append(table)
    return groups.items()


def _note(tables: Sequence[Table]) -> str:
    return _interval_note(tables) + _too_long_note(tables)


def _too_long_note(tables: Sequence[Table]) -> str:
    """Say how many prompts did not fit the model, or nothing where all did."""
    shares = [
        f"{table.variant}, {row.label}{'' if row.uncompressed else f' {ratio:g}×'}: {100 * cell.too_long:.1f} %"
        for table in tables
        for row in table.rows
        for ratio, cell in row.cells.items()
        if 0 < cell.too_long < 1
    ]
    if not shares:
        return ""
    return f"; †: prompts that did not fit the model's context count as not solved ({'; '.join(dict.fromkeys(shares))})"


def _interval_note(tables: Sequence[Table]) -> str:
    level = f"{100 * tables[0].confidence:g} %"
    if any(cell.across_seeds for table in tables for row in table.rows for cell in row.cells.values()):
        return f"[low, high]: {level} interval; (k): mean of k seeds, with the t interval across them"
    seeds = sorted({seed for table in tables for seed in table.seeds})
    return f"[low, high]: {level} interval over the n problems or windows; seed {', '.join(map(str, seeds))}"


def _header(table: Table) -> list[str]:
    return ["", *(f"{ratio:g}×" for ratio in table.ratios)]


def _text(table: Table, row: Row, ratio: float, joint: str = " ") -> str:
    cell = row.cells.get(ratio)
    return "" if cell is None else joint.join(format_cell(table.metric, cell))


def _grid(table: Table) -> list[list[str]]:
    return [[row.label, *(_text(table, row, ratio) for ratio in table.ratios)] for row in table.rows]


def _blocks(table: Table, width: int) -> Iterable[object]:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    joint, blocks = _layout(table, width)
    for ratios in blocks:
        grid = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        grid.add_column("", max_width=_LABEL_WIDTH, overflow="fold")
        for ratio in ratios:
            grid.add_column(f"{ratio:g}×", justify="right", no_wrap=True)
        rows = [row for row in table.rows if any(ratio in row.cells for ratio in ratios)]
        for row, after in zip(rows, [*rows[1:], None], strict=True):
            last = row.uncompressed and after is not None and not after.uncompressed
            texts = [Text(_text(table, row, ratio, joint), justify="right") for ratio in ratios]
            style = "italic" if row.uncompressed else ""
            grid.add_row(_label(row.label), *texts, style=style, end_section=last)
        yield grid


def _label(label: str) -> Text:
    from rich.text import Text

    return Text(fold_name(clean(label), _LABEL_WIDTH))


def _layout(table: Table, width: int) -> tuple[str, list[list[float]]]:
    """Return how value and interval are joined, and the ratios of each block of columns."""
    label = min(_LABEL_WIDTH, max(len(row.label) for row in table.rows))
    blocks: list[list[float]] = []
    for joint in (" ", "\n"):
        blocks, room = [[]], width - label
        for ratio in table.ratios:
            lines = [line for row in table.rows for line in _text(table, row, ratio, joint).split("\n")]
            need = max(len(line) for line in lines) + 3
            if room < need and blocks[-1]:
                blocks, room = [*blocks, []], width - label
            blocks[-1].append(ratio)
            room -= need
        if len(blocks) == 1:
            return joint, blocks
    return "\n", blocks


def _detail_rows(tables: Sequence[Table], exact: bool = True) -> list[list[str]]:
    rows: dict[tuple[str, float], list[str]] = {}
    uncompressed = {(row.label, r) for table in tables for row in table.rows if row.uncompressed for r in row.cells}
    for table in tables:
        for row in table.rows:
            for ratio, cell in row.cells.items():
                rows.setdefault((row.label, ratio), [row.label, *_details(ratio, cell, exact)])
    ordered = sorted(rows, key=lambda place: place not in uncompressed)
    return [rows[place] for place in ordered]


def _details(ratio: float, cell: Cell, exact: bool) -> list[str]:
    counts = [f"{count:,.0f}" if exact else _scaled(count, ("", "k", "M", "B")) for count in (cell.params, cell.tokens)]
    return [
        *(f"{ratio:g}×", f"{cell.ratio:.3f}×", f"{100 * cell.kept:.1f} %", f"{cell.ratio_matrices:.3f}×"),
        *(counts[0], _scaled(cell.bytes, ("B", "kB", "MB", "GB")), counts[1]),
    ]


def _scaled(count: float, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if count < 1000:
            return f"{count:.4g} {unit}".strip()
        count /= 1000
    return f"{count:,.4g} {units[-1]}"


def _detail_table(rows: Sequence[Sequence[str]]) -> object:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    grid.add_column("", overflow="fold", max_width=_LABEL_WIDTH)
    for name in _DETAILS:
        grid.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    for i, row in enumerate(rows):
        last = i + 1 < len(rows) and rows[i + 1][0] != row[0]
        grid.add_row(_label(row[0]), *(Text(clean(text)) for text in row[1:]), end_section=last)
    return grid


def markdown_text(text: str) -> str:
    """Return text that stays text in Markdown."""
    escaped = "".join(f"\\{c}" if c in "\\`*_{}[]<>#|~$!" else c for c in clean(text))
    return escaped.replace("&", "&amp;")


def _lines(header: Sequence[str], rows: Sequence[Sequence[str]], escape: Callable[[str], str]) -> list[list[str]]:
    return [[escape(text) for text in line] for line in (header, *rows)]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str = "") -> str:
    """Return a Markdown table; ``align`` has an l or r a column, without it the first column is to the left."""
    rule = "".join(" --- |" if c == "l" else " ---: |" for c in align or "l" + "r" * (len(header) - 1))
    head, *body = (f"| {' | '.join(line)} |" for line in _lines(header, rows, markdown_text))
    return "\n".join([head, f"|{rule}", *body])


def latex_text(text: str) -> str:
    """Return text that stays text in LaTeX."""
    return "".join(_LATEX.get(c, c) for c in clean(text))


def latex_table(
    caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], split: int = 0, columns: str = ""
) -> str:
    """Return a ``table`` environment for the package booktabs; a rule follows the first ``split`` rows, if any.

    ``columns`` is the argument of ``tabular``; without it the first column is to the left, the others to the right.
    """
    # A line that begins with '[' would be read as the optional argument of the line break before it.
    head, *body = (" & ".join(line) + r" \\" for line in _lines(header, rows, latex_text))
    body = [line if not line.startswith("[") else "{}" + line for line in body]
    if 0 < split < len(body):
        body.insert(split, r"\midrule")
    inner = "\n".join([r"\toprule", head, r"\midrule", *body, r"\bottomrule"])
    columns = columns or "l" + "r" * (len(header) - 1)
    return (
        f"\\begin{{table}}\n\\centering\n\\caption{{{latex_text(caption)}}}\n"
        f"\\begin{{tabular}}{{{columns}}}\n{inner}\n\\end{{tabular}}\n\\end{{table}}"
    )
