"""The sections of a report, in the order in which a reader asks."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial

from ..pages.parts import Column, Field, TableView
from ..pages.shell import shorten
from ..tables.pivot import Cell, Table, format_cell, pivot
from .blocks import Block, Bullets, Code, Examples, Fold, Heading, Listing, Picture, Section
from .data import Report
from .figures import MOST_LINES, curve, failure_figure, spending_figure
from .findings import findings, is_separated
from .inside import rank_blocks, spectra_blocks
from .spending import Spending, Spent, spending
from .words import count, duration

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
    columns = [Column("label"), Column("method"), Column("options", sortable=False)]
    blocks: list[Block] = [
        "How well does the model still do its task after compression, by method and ratio? This is what was asked.",
        Listing(report.asked.facts),
    ]
    if rows:
        table = TableView("methods", "Methods and all their options", columns, rows)
        blocks.append(Fold(f"The {len(rows)} methods with their options", [table], long=True))
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


def _results(report: Report, tables: Sequence[Table]) -> list[Block]:
    blocks: list[Block] = [_table(report, number, table) for number, table in enumerate(tables)]
    if report.paired:
        blocks.append(Fold(f"The {len(report.paired)} paired tests", [_paired(report, tables)], long=True))
    blocks.append(Fold("Sizes and training tokens of every model", [_sizes(tables)], long=True))
    return blocks


def _table(report: Report, number: int, table: Table) -> TableView:
    tests = {(t.ratio, t.label): t for t in report.paired if t.table == number}
    leaders = {(t.ratio, t.leader) for t in report.paired if t.table == number}
    columns = [Column("method"), *(Column(f"{ratio:g}×", "number") for ratio in table.ratios)]
    rows = []
    for row in table.rows:
        fields = [Field(row.label)]
        for ratio in table.ratios:
            cell = row.cells.get(ratio)
            test = tests.get((ratio, row.label))
            mark = "best" if (ratio, row.label) in leaders else "≈" if test and not is_separated(test) else ""
            fields.append(Field("") if cell is None else _field(table, cell, mark))
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
        note = note.replace("highest", "highest" if table.higher_is_better else "lowest")
    pinned = sum(row.uncompressed for row in table.rows)
    return TableView(f"results-{number}", table.title, columns, rows, pinned=pinned, note=note)


def _field(table: Table, cell: Cell, mark: str) -> Field:
    value, interval = format_cell(table.metric, cell)
    return Field(value, cell.value, interval, mark, kind="best" if mark == "best" else "")


def _paired(report: Report, tables: Sequence[Table]) -> TableView:
    measured = [Column("measured")] if len({test.table for test in report.paired}) > 1 else []
    columns = [
        *(Column("behind"), Column("best"), Column("ratio", "number"), *measured, Column("lead", "number")),
        *(Column("p", "number"), Column("p, corrected", "number", "Holm's correction over all rows at the ratio")),
        *(
            Column("n", "number"),
            Column("seeds", "number"),
            Column("each seed", help="whether the best row leads in each seed that both have"),
            Column("test"),
        ),
    ]
    rows: list[list[Field | str]] = []
    for t in report.paired:
        scale, unit = (100, "points") if t.unit == "problems" else (1, "nats/token")
        low, high = f"{scale * t.low:+.3g}", f"{scale * t.high:+.3g}"
        lead = Field(f"{scale * t.difference:.3g} {unit}", t.difference, f"[{low}, {high}]")
        start: list[Field | str] = [t.label, t.leader, Field(f"{t.ratio:g}×", t.ratio)]
        start += [tables[t.table].variant for _ in measured]
        values = [Field(f"{t.p_value:.2g}", t.p_value), Field(f"{t.p_corrected:.2g}", t.p_corrected)]
        end = [str(t.seeds), "yes" if t.every_seed else "no", t.test]
        rows.append([*start, lead, *values, Field(f"{t.units:,}", t.units), *end])
    note = (
        "Lead: by how much the best estimate's row is better, with its 95 % interval. Units are problems or windows; "
        "seeds are averaged. Choosing the best row by the same numbers favours it a little. "
        "A row counts as behind where the corrected p is below 0.05 and the best row leads in each seed."
    )
    return TableView("paired", "Paired tests against the best estimate", columns, rows, note=note)


def _sizes(tables: Sequence[Table]) -> TableView:
    names = ("ratio", "achieved", "kept", "matrices", "parameters", "weights", "tokens after finetuning")
    found: dict[tuple[str, float], list[Field | str]] = {}
    for table in tables:
        for row in table.rows:
            for ratio, cell in row.cells.items():
                found.setdefault((row.label, ratio), [row.label, *_size(ratio, cell)])
    columns = [Column("method"), *(Column(name, "number") for name in names)]
    note = "Matrices: the ratio over the compressed matrices alone. Numbers are means over the seeds."
    return TableView("sizes", "Sizes and training tokens", columns, list(found.values()), note=note)


def _size(ratio: float, cell: Cell) -> list[Field]:
    return [
        Field(f"{ratio:g}×", ratio),
        Field(f"{cell.ratio:.3f}×", cell.ratio),
        Field(f"{100 * cell.kept:.1f} %", cell.kept),
        Field(f"{cell.ratio_matrices:.3f}×", cell.ratio_matrices),
        Field(f"{cell.params:,.0f}", cell.params),
        Field(f"{count(cell.bytes)}B", cell.bytes),
        Field(f"{cell.tokens:,.0f}", cell.tokens),
    ]


def _curves(tables: Sequence[Table]) -> list[Block]:
    blocks: list[Block] = []
    for number, table in enumerate(tables):
        if not table.compressed:
            continue
        caption = f"{table.variant}: {table.measure} over the achieved ratio, with intervals. The table above has the "
        caption += "numbers."
        rows = [row for row in table.rows if not row.uncompressed]
        if len(rows) > MOST_LINES:
            caption += f" The {MOST_LINES} best of {len(rows)} rows are drawn."
        if len(blocks) < MOST_CURVES and any(math.isfinite(c.value) for row in rows for c in row.cells.values()):
            blocks.append(Picture(f"curve-{number}", caption, caption, partial(curve, table, f"curve-{number}")))
        elif len(blocks) == MOST_CURVES:
            blocks.append(f"The first {MOST_CURVES} benchmarks are drawn; all are in the tables above.")
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


def _spent_table(name: str, caption: str, spent: Spending, rows: Sequence[Spent]) -> TableView:
    by_row = rows is spent.rows
    seconds = spent.kinds if by_row else ("seconds",)
    columns = [
        Column("method" if by_row else "kind of stage"),
        Column("stages", "number"),
        *(Column(f"{kind}, s" if by_row else kind, "number") for kind in seconds),
        *([Column("all, s", "number")] if by_row else [Column("share", "number")]),
        *(Column("steps", "number"), Column("training tokens", "number")),
    ]
    total = sum(row.total for row in rows) or 1.0
    lines = []
    for row in rows:
        parts = [row.seconds.get(kind, 0.0) for kind in seconds] if by_row else [row.total]
        last = Field(f"{row.total:,.1f}", row.total) if by_row else Field(f"{100 * row.total / total:.1f} %", row.total)
        lines.append(
            [
                *(Field(row.name), Field(f"{row.stages}", row.stages)),
                *(Field(f"{part:,.1f}" if part else "", part or None) for part in parts),
                *(last, Field(f"{row.steps:,}", row.steps), Field(f"{row.tokens:,}", row.tokens)),
            ]
        )
    return TableView(name, caption, columns, lines)


def _failures(report: Report) -> list[Block]:
    blocks: list[Block] = []
    for number, part in enumerate(report.failures):
        blocks.append(Heading(part.title))
        total = sum(row.total for row in part.counted)
        wrong = {kind: sum(row.counts.get(kind, 0) for row in part.counted) for kind in part.kinds}
        if not wrong:
            blocks.append(f"All {total:,} answers are right.")
            continue
        said = "; ".join(f"{kind} {n:,}" for kind, n in wrong.items())
        blocks.append(f"Of {total:,} answers over all models, {sum(wrong.values()):,} are not right: {said}.")
        columns = [Column("method"), Column("ratio", "number"), Column("answers", "number")]
        columns += [Column(kind, "number") for kind in ("correct", *part.kinds)]
        rows = [
            [
                *(Field(row.label), Field(f"{row.ratio:g}×", row.ratio), Field(f"{row.total:,}", row.total)),
                *(Field(f"{(n := row.counts.get(kind, 0)):,}", n) for kind in ("correct", *part.kinds)),
            ]
            for row in part.counted
        ]
        ratios = sorted({row.ratio for row in part.counted if row.ratio != 1})
        for start in range(0, len(ratios), PANELS):
            here = ratios[start : start + PANELS]
            alt = "Bars of answers. " + "; ".join(
                f"{row.label} at {row.ratio:g}×: {100 * row.counts.get('correct', 0) / row.total:.0f} % correct"
                for row in part.counted
                if row.ratio in here
            )
            caption = f"{part.title}: answers by what is wrong with them, one panel a ratio."
            draw = partial(failure_figure, part, here)
            blocks.append(Picture(f"failures-{number}-{start}", shorten(alt, 1200), caption, draw))
        table = TableView(
            f"failures-{number}-table", f"{part.title}: answers by kind, all seeds together", columns, rows
        )
        blocks.append(Fold("The counts of every model", [table]))
        if part.examples:
            blocks.append(Fold(f"{len(part.examples)} examples", [Examples(part.examples)], long=False))
    return blocks


def _failed(report: Report) -> list[Block]:
    if not report.failed:
        return []
    columns = [Column("stage"), Column("ended"), Column("what became of it"), Column("error")]
    rows = [[s.title, s.ended, "done later" if s.later else "not done", s.error] for s in report.failed]
    return [
        "These stages ended with an error. A stage that reads something of this run may have been another sweep's.",
        TableView("failed-stages", "Stages that failed", columns, rows),
    ]
