"""docs/published.md: every quoted number in one table a file, made from the files themselves."""

from __future__ import annotations

from collections.abc import Sequence

from ...results.tables.escape import markdown_text
from ...results.tables.table import Table, text_columns
from ...results.tables.writers import markdown_grid
from .quoted import FOLDER, Quoted, quoted_files, read_quoted

_INTRODUCTION = """# The papers' own numbers

Every number here is quoted, not measured with this project. The files are `papers/published/*.csv`; this page is made
from them by `python -m lowrank_bench.papers.published > docs/published.md`. `bench reproduce` shows them beside ours.

*Size* is as the source states it: a ratio is original / compressed parameters, and `of` says whether that counts the
whole model or the compressed matrices alone. `≈` is approximate in the source, `<` an upper bound; *ambiguous* means
that it is not sure what the number says. An empty cell is not known.

## The verdict

- *not comparable*: the two differ in model, benchmark, metric, prompt, context, number of problems, method, ratio (more
  than 2 % apart), training, or in what the run says of itself (other recipe, other training data); or the source is
  ambiguous; or ours has no interval; or the interval of the difference is wider than 15 points (15 % of a perplexity)
  either way. The reason is given beside it.
- *reproduced*: the 95 % interval of the difference comes within the quoted number's rounding of 0. The interval is made
  from both by square-and-add (Newcombe 1998): ours as measured, theirs Wilson's on the paper's number of problems, or
  the number alone where that is not known. Rounding is half a unit of the last printed digit, a whole one where the
  number is approximate. An upper bound is reproduced if the interval reaches below it.
- *not reproduced*: everything else.

Ours and theirs ran on the same problems, so the interval is somewhat too wide: the verdict leans to *reproduced*. One
paper's number is mostly one run of one seed.

## The columns
"""


def document() -> str:
    """Return the page."""
    parts = [_INTRODUCTION]
    fields = [[name, (field.description or "").replace("`", "")] for name, field in Quoted.model_fields.items()]
    parts.append(markdown_grid(Table("", text_columns("column", "what it says"), fields)) + "\n")
    for path in quoted_files():
        rows = read_quoted(path)
        parts.append(f"## {markdown_text(path.relative_to(FOLDER).name)}\n")
        parts.append(_table(rows) + "\n")
    return "\n".join(parts)


def _table(rows: Sequence[Quoted]) -> str:
    header = ["source", "where", "for", "model", "benchmark", "method", "size", "of", "value", "certainty"]
    return markdown_grid(Table("", text_columns(*header, "conditions"), [_line(row) for row in rows]))


def _line(row: Quoted) -> list[str]:
    size = {
        "ratio": f"{row.size}×",
        "kept %": f"{row.size} % kept",
        "removed %": f"{row.size} % removed",
        "parameters (B)": f"{row.size} B parameters",
    }[row.size_as]
    metric = "" if row.metric == "perplexity" else f" {row.metric}"
    return [
        f"{row.paper} {row.source}",
        f"{row.place} ({row.evidence})",
        row.item,
        row.model,
        f"{row.benchmark}{metric}",
        row.method,
        size,
        row.size_of,
        row.shown if row.unit == "%" else f"{row.shown} (perplexity)",
        row.certainty,
        conditions(row),
    ]


def conditions(row: Quoted) -> str:
    """Return what is known of how a number came about, in words."""
    training = {"none": "no training", "unclear": ""}.get(row.training, f"trained {row.training} compression")
    known = [
        f"n = {row.n:,}" if row.n else "",
        f"{row.context} tokens" if row.context else "",
        f"{row.shots} shots" if row.shots is not None else "",
        f"grader: {row.grader}" if row.grader else "",
        f"calibration: {row.calibration}" if row.calibration else "",
        training if row.method != "none" else "",
        row.note,
    ]
    return "; ".join(text for text in known if text)
