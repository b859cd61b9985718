"""The sections of a report, in the order in which a reader asks."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from ..tables.by_bytes import by_bytes
from ..tables.names import shorten
from ..tables.pivot import Cell, Pivot, format_cell, pivot, same_but_budget
from ..tables.table import Cell as TableCell
from ..tables.table import Column, Field, Table, number_columns, text_columns
from ..tables.tuning import tuning
from .blocks import Block, Bullets, Code, Examples, Fold, Heading, Listing, Picture, Section
from .data import Report
from .figures import MOST_LINES, budget_curve, curve, failure_figure, spending_figure
from .findings import findings
from .inside import rank_blocks, spectra_blocks
from .spending import Spending, Spent, spending
from .verdicts import is_separated
from .words import count, duration, with_budget

MOST_CURVES = 20
"""Benchmarks whose curves a page shows at most."""
PANELS = 4
"""Ratios beside each other in one picture."""


def sections(report: Report) -> list[Section]:
    """Return everything that is to be said about a run."""
    tables = pivot(report.records)
    parts: list[tuple[str, str, Sequence[Block]]] = [
        ("question", "The question", _question(report)),
        ("findings", "What came out", _findings(report)),
        ("results", "The numbers", _results(report, tables)),
        ("curves", "Curves", _curves(tables)),
        ("spending", "Where training and time went", _spending(report)),
        ("ranks", "Rank per layer", rank_blocks(report)),
        ("spectra", "Spectra", spectra_blocks(report)),
        ("failures", "Failures", _failures(report)),
        ("failed", "Failed stages", _failed(report)),
        ("origin", "What was run on what", [Listing(report.origin)]),
    ]
    return [
        Section(name, title, [*blocks, *report.missing.get(name, ())])
        for name, title, blocks in parts
        if blocks or name in report.missing
    ]


def _question(report: Report) -> list[Block]:
    rows = [[label, method, _options(options)] for label, method, options in report.asked.methods]
    columns = [*text_columns("label", "method"), Column("options", sortable=False)]
    blocks: list[Block] = [
        "How well does the model still do its task after compression, by method and ratio? This is what was asked.",
        Listing(report.asked.facts),
    ]
    if rows:
        table = Table("Methods and all their options", columns, rows, "methods")
        title = f"The {len(rows)} methods with their options" if len(rows) > 1 else "The method with its options"
        blocks.append(Fold(title, [table], long=True))
    if report.asked.config:
        blocks.append(Fold("The configuration of the sweep (sweep.yaml, paths left out)", [Code(report.asked.config)]))
    return blocks


def _options(text: str) -> str:
    return ", ".join(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in json.loads(text).items())


def _findings(report: Report) -> list[Block]:
    blocks: list[Block] = [*report.missing.get("stages", ()), *report.missing.get("compressed", ())]
    for title, sentences in findings(report):
        blocks += [Heading(title), Bullets(sentences)]
    return blocks


def _results(report: Report, tables: Sequence[Pivot]) -> list[Block]:
    blocks: list[Block] = [_table(report, number, table) for number, table in enumerate(tables)]
    blocks += [
        replace(over_bytes, id=f"bytes-{number}")
        for number, table in enumerate(tables)
        if (over_bytes := by_bytes(table)) is not None
    ]
    for number, (model, task) in enumerate(dict.fromkeys((table.model, table.task) for table in tables)):
        if (tuned := tuning(report.records, model, task)) is not None:
            blocks.append(replace(tuned, id=f"tuned-{number}"))
    if report.paired:
        blocks.append(Fold(f"The {len(report.paired)} paired tests", [_paired(report, tables)], long=True))
    blocks.append(Fold("Sizes and training tokens of every model", [_sizes(tables)], long=True))
    return blocks


def _table(report: Report, number: int, table: Pivot) -> Table:
    tests = {(t.ratio, t.label): t for t in report.paired if t.table == number}
    leaders = {(t.ratio, t.leader) for t in report.paired if t.table == number}
    columns = [Column("method"), *number_columns(*(f"{ratio:g}×" for ratio in table.ratios))]
    rows: list[list[TableCell]] = []
    untested = False
    for row in table.rows:
        fields: list[TableCell] = [row.label]
        for ratio in table.ratios:
            cell = row.cells.get(ratio)
            test = tests.get((ratio, row.label))
            mark = "best" if (ratio, row.label) in leaders else "≈" if test and not is_separated(test) else ""
            if test is None and any(leader == ratio for leader, _ in leaders) and not (mark or row.uncompressed):
                mark = "?" if cell is not None else ""
                untested = untested or bool(mark)
            fields.append(None if cell is None else _field(table, cell, mark))
        rows.append(fields)
    spread = any(cell.across_seeds for row in table.rows for cell in row.cells.values())
    note = f"[low, high]: {100 * table.confidence:g} % interval" + (
        "; (k): mean of k seeds, with the interval across them." if spread else " over the problems or windows."
    )
    if tests:
        note += (
            " best: highest estimate at the ratio; ≈: the paired test does not separate it from the best; "
            "no mark: it is behind."
        )
        note += " ?: not tested." if untested else ""
        note = note.replace("highest", "highest" if table.higher_is_better else "lowest")
    pinned = sum(row.uncompressed for row in table.rows)
    notes = [note, *([f"The {table.note}."] if table.note else [])]
    return Table(table.title, columns, rows, f"results-{number}", notes=notes, pinned=pinned)


def _field(table: Pivot, cell: Cell, mark: str) -> Field:
    value, interval = format_cell(table.metric, cell)
    return Field(value, cell.value, interval, mark, kind="best" if mark == "best" else "")


def _paired(report: Report, tables: Sequence[Pivot]) -> Table:
    measured = text_columns("measured") if len({test.table for test in report.paired}) > 1 else []
    columns = [
        *(*text_columns("behind", "best"), *number_columns("ratio", format="{:g}×"), *measured),
        *(*number_columns("lead"), *number_columns("p", format="{:.2g}")),
        Column("p, corrected", "number", "Holm's correction over all rows at the ratio", "{:.2g}"),
        *number_columns("n", "seeds", format="{:,}"),
        Column("each seed", help="whether the best row leads in each seed that both have"),
        Column("test"),
    ]
    rows: list[list[TableCell]] = []
    for t in report.paired:
        scale, unit = (100, "points") if t.unit == "problems" else (1, "nats/token")
        low, high = f"{scale * t.low:+.3g}", f"{scale * t.high:+.3g}"
        lead = Field(f"{scale * t.difference:.3g} {unit}", t.difference, f"[{low}, {high}]")
        named = [tables[t.table].variant for _ in measured]
        numbers = (t.p_value, t.p_corrected, t.units, t.seeds)
        rows.append([t.label, t.leader, t.ratio, *named, lead, *numbers, "yes" if t.every_seed else "no", t.test])
    note = (
        "Lead: by how much the best estimate's row is better, with its 95 % interval. Units are problems or windows; "
        "seeds are averaged. Choosing the best row by the same numbers favours it a little. "
        "A row counts as behind where the corrected p is below 0.05 and the best row leads in each seed."
    )
    return Table("Paired tests against the best estimate", columns, rows, "paired", notes=[note])


def _sizes(tables: Sequence[Pivot]) -> Table:
    groups: dict[tuple[str, float], list[TableCell]] = {}
    for table in tables:
        for row in table.rows:
            for ratio, c in row.cells.items():
                share_left = Field(f"{100 * c.kept:.1f} %", c.kept)
                weights: list[TableCell] = [Field(f"{count(size)}B", size) for size in (c.bytes, c.runtime_bytes)]
                numbers: list[TableCell] = [ratio, c.ratio, share_left, c.ratio_matrices, c.params, *weights, c.tokens]
                label = with_budget(row.label, table.budget if row.budgeted else 0)
                groups.setdefault((label, ratio), [label, *numbers])
    columns = [Column("method"), *number_columns("ratio", format="{:g}×")]
    columns += number_columns("achieved", "kept", "matrices", format="{:.3f}×")
    columns += number_columns("parameters", "on disk", "in memory", "tokens after finetuning", format="{:,.0f}")
    note = "Matrices: the ratio over the compressed matrices alone. Numbers are means over the seeds."
    return Table("Sizes and training tokens", columns, list(groups.values()), "sizes", notes=[note])


def _curves(tables: Sequence[Pivot]) -> list[Block]:
    blocks: list[Block] = []
    for number, table in enumerate(tables):
        if not table.compressed:
            continue
        steps = with_budget("", table.budget)
        caption = (
            f"{table.variant}: {table.measure} over the achieved ratio{steps}, with intervals. The table above has the "
        )
        caption += "numbers."
        rows = [row for row in table.rows if not row.uncompressed]
        if len(rows) > MOST_LINES:
            caption += f" The {MOST_LINES} best of {len(rows)} rows are drawn."
        if len(blocks) < MOST_CURVES and any(math.isfinite(c.value) for row in rows for c in row.cells.values()):
            blocks.append(Picture(f"curve-{number}", caption, caption, partial(curve, table, f"curve-{number}")))
        # Once: with this note there are more blocks than curves may be.
        elif len(blocks) == MOST_CURVES:
            blocks.append(f"The first {MOST_CURVES} benchmarks are drawn; all are in the tables above.")
    return blocks + _budget_curves(tables)


def _budget_curves(tables: Sequence[Pivot]) -> list[Block]:
    """Return a picture for each ratio of the measures that have several budgets."""
    blocks: list[Block] = []
    for number, group in enumerate(same_but_budget(tables)):
        rows = [row for table in group if table.budget for row in table.rows if row.budgeted]
        for ratio in sorted({ratio for row in rows for ratio in row.cells}):
            if len(blocks) < MOST_CURVES:
                caption = f"{group[0].variant} at {ratio:g}×: {group[0].measure} over the training tokens after the "
                caption += "first finetuning, with intervals."
                name = f"budgets-{number}-{ratio:g}".replace(".", "-")
                blocks.append(Picture(name, caption, caption, partial(budget_curve, group, ratio, name)))
    return blocks


def _spending(report: Report) -> list[Block]:
    spent = spending(report.costs)
    if not spent.rows:
        return []
    total = sum(row.total for row in spent.by_kind)
    text = f"The run needed {len(report.costs)} stages, {duration(total)} of computing in all, each counted once."
    if report.span:
        text += f" They ran between {' and '.join(map(_moment, report.span))} (UTC)."
    shared = [row for row in spent.rows if row.shared]
    if shared:
        seconds = sum(row.total for row in shared)
        text += f" {duration(seconds)} of it went into stages that several methods share."
    table = _spent_table("spending-rows", "By method", spent, spent.rows)
    caption = "Seconds of computing by method and kind of stage; what several methods share has a bar of its own."
    alt = "Bars of seconds: " + "; ".join(f"{row.name} {duration(row.total)}" for row in spent.rows)
    return [
        text,
        _spent_table("spending-kinds", "By kind of stage", spent, spent.by_kind),
        Picture("spending", shorten(alt, 1200), caption, partial(spending_figure, spent), table),
        "Stages may run side by side, and wait for each other: their sum is not the time that the sweep took.",
    ]


def _moment(time: str) -> str:
    return time[:16].replace("T", " ")


def _spent_table(name: str, caption: str, spent: Spending, rows: Sequence[Spent]) -> Table:
    by_row = rows is spent.rows
    seconds = spent.kinds if by_row else ("seconds",)
    columns = [
        *(Column("method" if by_row else "kind of stage"), *number_columns("stages")),
        *number_columns(*(f"{kind}, s" if by_row else kind for kind in seconds), format="{:,.1f}"),
        *number_columns("all, s" if by_row else "share", format="{:,.1f}"),
        *number_columns("steps", "training tokens", format="{:,}"),
    ]
    total = sum(row.total for row in rows) or 1.0
    lines: list[list[TableCell]] = []
    for row in rows:
        parts = [row.seconds.get(kind, 0.0) or None for kind in seconds] if by_row else [row.total or None]
        last = row.total if by_row else Field(f"{100 * row.total / total:.1f} %", row.total)
        lines.append([row.name, row.stages, *parts, last, row.steps, row.tokens])
    return Table(caption, columns, lines, name)


def _failures(report: Report) -> list[Block]:
    blocks: list[Block] = []
    for number, part in enumerate(report.failures):
        blocks.append(Heading(part.title))
        total = sum(row.total for row in part.counted)
        wrong = {kind: sum(row.counts.get(kind, 0) for row in part.counted) for kind in part.kinds}
        if not wrong:
            blocks.append(f"All {total:,} answers are right.")
            continue
        counts = "; ".join(f"{kind} {n:,}" for kind, n in wrong.items())
        blocks.append(f"Of {total:,} answers over all models, {sum(wrong.values()):,} are not right: {counts}.")
        kinds = ("correct", *part.kinds)
        columns = [Column("method"), *number_columns("ratio", format="{:g}×")]
        columns += number_columns("answers", *kinds, format="{:,}")
        rows: list[list[TableCell]] = [
            [row.label, row.ratio, row.total, *(row.counts.get(kind, 0) for kind in kinds)] for row in part.counted
        ]
        ratios = sorted({row.ratio for row in part.counted if row.ratio != 1})
        for start in range(0, len(ratios), PANELS):
            panel_ratios = ratios[start : start + PANELS]
            alt = "Bars of answers. " + "; ".join(
                f"{row.label} at {row.ratio:g}×: {100 * row.counts.get('correct', 0) / row.total:.0f} % correct"
                for row in part.counted
                if row.ratio in panel_ratios
            )
            caption = f"{part.title}: answers by what is wrong with them, one panel a ratio."
            draw = partial(failure_figure, part, panel_ratios)
            blocks.append(Picture(f"failures-{number}-{start}", shorten(alt, 1200), caption, draw))
        caption = f"{part.title}: answers by kind, all seeds together"
        table = Table(caption, columns, rows, f"failures-{number}-table")
        blocks.append(Fold("The counts of every model", [table]))
        if part.examples:
            blocks.append(Fold(f"{len(part.examples)} examples", [Examples(part.examples)], long=False))
    return blocks


def _failed(report: Report) -> list[Block]:
    if not report.failed:
        return []
    columns = text_columns("stage", "ended", "what became of it", "error")
    rows = [[s.title, s.ended, "done later" if s.later else "not done", s.error] for s in report.failed]
    return [
        "These stages ended with an error. A stage that reads something of this run may have been another sweep's.",
        Table("Stages that failed", columns, rows, "failed-stages"),
    ]
