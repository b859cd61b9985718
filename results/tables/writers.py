"""Tables as CSV, Markdown and LaTeX; hostile text stays text in all three."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from .escape import latex_text, markdown_text
from .table import Table


def to_csv(tables: Sequence[Table]) -> str:
    """Return tables as CSV, numbers at full precision; what is not a number, but should be, is written ``nan``."""
    return "".join(table.frame().to_csv(index=False, lineterminator="\n", na_rep="nan") for table in tables)


def to_markdown(tables: Sequence[Table]) -> str:
    """Return tables as GitHub-flavoured Markdown, each below its title."""
    parts = []
    for table, notes in with_notes(tables):
        parts += [f"### {markdown_text(table.title)}"] if table.title else []
        parts += [markdown_text(table.lead)] if table.lead else []
        parts += [markdown_grid(table)] if table.rows else []
        parts += map(markdown_text, notes)
    return "\n\n".join(parts) + "\n"


def markdown_grid(table: Table) -> str:
    """Return the header and the lines of a table in Markdown."""
    rule = "".join(" ---: |" if column.kind == "number" else " --- |" for column in table.columns)
    head, *body = (f"| {' | '.join(line)} |" for line in _lines(table, markdown_text))
    return "\n".join([head, f"|{rule}", *body])


def to_latex(tables: Sequence[Table]) -> str:
    """Return tables as LaTeX for the package booktabs, one ``table`` environment each; empty ones are left out."""
    return "\n\n".join(_latex(table) for table in tables if table.rows) + "\n"


def _latex(table: Table) -> str:
    # A line that begins with '[' would be read as the optional argument of the line break before it.
    head, *body = (" & ".join(line) + r" \\" for line in _lines(table, latex_text))
    body = [line if not line.startswith("[") else "{}" + line for line in body]
    for row in sorted(table.ruled, reverse=True):
        body.insert(row + 1, r"\midrule")
    inner = "\n".join([r"\toprule", head, r"\midrule", *body, r"\bottomrule"])
    columns = "".join(
        f"p{{{c.width:g}\\linewidth}}" if c.width else "r" if c.kind == "number" else "l" for c in table.columns
    )
    title = f"{table.title}: {table.lead}" if table.lead else table.title
    caption = " ".join([f"{title}.", *table.below])
    return (
        f"\\begin{{table}}\n\\centering\n\\caption{{{latex_text(caption)}}}\n"
        f"\\begin{{tabular}}{{{columns}}}\n{inner}\n\\end{{tabular}}\n\\end{{table}}"
    )


def with_notes(tables: Sequence[Table]) -> Iterable[tuple[Table, list[str]]]:
    """Return each table with the lines below it; a legend that the next table has too is left to that one."""
    for table, after in zip(tables, [*tables[1:], None], strict=True):
        yield table, table.below if after is None or after.legend != table.legend else list(table.notes)


def _lines(table: Table, escape: Callable[[str], str]) -> list[list[str]]:
    lines = [[column.title for column in table.columns], *([field.whole for field in row] for row in table.fields)]
    return [[escape(text) for text in line] for line in lines]


WRITERS: Mapping[str, Callable[[Sequence[Table]], str]] = {
    "csv": to_csv,
    "markdown": to_markdown,
    "latex": to_latex,
}
