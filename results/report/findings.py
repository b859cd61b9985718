"""The findings of a run in sentences that follow from its numbers, and from nothing else."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...models.quantised.scheme import CONTROLS
from ..tables.pivot import Cell, Pivot, Row, direction, format_value, is_fraction, pivot
from .budgets import budget_findings
from .data import Paired, Report
from .equal_bytes import equal_bytes
from .verdicts import SIGNIFICANCE, is_separated, lies_apart
from .words import and_list, duration

if TYPE_CHECKING:
    import pandas as pd

_NAMED = 6
"""Most rows that a sentence names; more are counted."""
_END_OF_GRID = (
    "{} of {} rows chose the least or the largest learning rate of the grid, beyond which a better one may lie; a "
    "wider grid trains only what is new."
)


def findings(report: Report) -> list[tuple[str, list[str]]]:
    """Return sentences by heading: one heading a table, and one about what the run cost."""
    tables = pivot(report.records)
    texts = []
    for number, table in enumerate(tables):
        if table.compressed:
            tests = [test for test in report.paired if test.table == number]
            texts.append((table.title, _table(table, tests)))
    texts += budget_findings(tables, report.orders)
    if sentences := _fairness(report) + _costs(report):
        texts.append(("Training and time", sentences))
    return texts


def _table(table: Pivot, tests: Sequence[Paired]) -> list[str]:
    rows = [row for row in table.rows if not (row.uncompressed or row.control)]
    base = [row for row in table.rows if row.uncompressed][-1:]
    sentences = [_baseline(table, base[0])] if base else []
    sentences += [f"The {table.note}."] if table.note else []
    leaders: list[list[str]] = []
    if not direction(table.metric, table.higher_is_better).endswith("is better"):
        ideal = direction(table.metric, table.higher_is_better)
        return [*sentences, f"Of {table.metric}, {ideal}: no method is called best here.", _uncertainty(table)]
    for ratio in [r for r in table.ratios if any(r in row.cells for row in rows)]:
        cells = [(row.label, row.cells[ratio]) for row in rows if ratio in row.cells]
        cells.sort(key=lambda item: -table.goodness(item[1]))
        leaders.append([label for label, cell in cells if table.goodness(cell) == table.goodness(cells[0][1])])
        sentences.append(_ratio(table, ratio, cells, [t for t in tests if t.ratio == ratio], base[:1]))
    if len(leaders) > 1 and len(rows) > 1:
        sentences.append(_everywhere(leaders))
    sentences += [equal_bytes(table), _uncertainty(table)]
    return sentences


def _everywhere(leaders: Sequence[Sequence[str]]) -> str:
    """Say which methods have the best estimate at every ratio, or how often each has it.

    Args:
        leaders: the methods with the best estimate of each ratio; several share it.
    """
    most = Counter(label for labels in leaders for label in labels).most_common()
    always = [label for label, count in most if count == len(leaders)]
    shared = any(len(labels) > 1 for labels in leaders)
    if always:
        every = "both" if len(leaders) == 2 else f"all {len(leaders)}"
        verb = "share" if len(always) > 1 else "has or shares" if shared else "has"
        return f"{_named(always)} {verb} the best estimate at {every} ratios."
    counts = and_list([f"{label} at {count}" for label, count in most])
    ties = "; shared ones count for each" if shared else ""
    return f"The best estimate is not always the same method's: of {len(leaders)} ratios, {counts}{ties}."


def _value(table: Pivot, cell: Cell) -> str:
    unit = " %" if is_fraction(table.metric) else ""
    low, high = format_value(table.metric, cell.low), format_value(table.metric, cell.high)
    return f"{format_value(table.metric, cell.value)}{unit} [{low}, {high}]"


def _baseline(table: Pivot, base: Row) -> str:
    cell = next(iter(base.cells.values()))
    return f"The {base.label.replace('uncompressed', 'uncompressed model')} has {table.metric} {_value(table, cell)}."


def _ratio(
    table: Pivot, ratio: float, cells: Sequence[tuple[str, Cell]], tests: Sequence[Paired], base: Sequence[Row]
) -> str:
    label, best = cells[0]
    tied = [name for name, cell in cells[1:] if table.goodness(cell) == table.goodness(best)]
    share = _share(table, best, base)
    if len(cells) == 1:
        return f"At {ratio:g}×, {label} has {_value(table, best)}{share}; no other method was measured there."
    if tied:
        return (
            f"At {ratio:g}×, {_named([label, *tied])} share the best estimate, {_value(table, best)}{share}; nothing "
            "separates them."
        )
    start = f"At {ratio:g}×, {label} has the best estimate, {_value(table, best)}{share}"
    parts = [start, *_separated(table, label, best, cells[1:], tests)]
    return "; ".join(parts) + "."


def _share(table: Pivot, best: Cell, base: Sequence[Row]) -> str:
    """Say what is left of the uncompressed model's value."""
    if not base:
        return ""
    before = next(iter(base[0].cells.values())).value
    if not (math.isfinite(before) and math.isfinite(best.value)) or before <= 0:
        return ""
    if is_fraction(table.metric) and table.higher_is_better:
        return f", {100 * best.value / before:.0f} % of the uncompressed model's"
    return f", {best.value / before:.3g} times the uncompressed model's" if "perplexity" in table.metric else ""


def _separated(
    table: Pivot, label: str, best: Cell, others: Sequence[tuple[str, Cell]], tests: Sequence[Paired]
) -> list[str]:
    tested = {test.label: test for test in tests if test.leader == label}
    ahead = [name for name, _ in others if name in tested and is_separated(tested[name])]
    close = [name for name, _ in others if name in tested and not is_separated(tested[name])]
    rest = [(name, cell) for name, cell in others if name not in tested]
    apart = [name for name, cell in rest if lies_apart(table, best, cell)]
    parts = []
    if tested:
        test, counts = next(iter(tested.values())), sorted({test.seeds for test in tested.values()})
        seeds = f", and in each of {counts[-1]} seeds" if counts[-1] > 1 else ""
        if len(counts) > 1:  # some row has fewer seeds in common with the best
            seeds = f", and in each of the seeds that both have, {counts[0]} to {counts[-1]}"
        basis = f"paired test over {test.units:,} {test.unit} (Holm-corrected p < {SIGNIFICANCE:g}{seeds})"
        if ahead:
            parts.append(f"the {basis} separates it from {_those(ahead, len(tested))}")
        if close:
            parts.append(
                f"{'it does not separate it from' if ahead else f'the {basis} does not separate it from'} "
                f"{_those(close, len(tested))}"
            )
    if apart:
        parts.append(f"its interval lies apart from that of {_those(apart, len(rest))}")
    if overlapping := [name for name, _ in rest if name not in apart]:
        parts.append(
            f"its interval overlaps that of {_those(overlapping, len(rest))}, so that the order is not settled"
        )
    return parts


def _named(names: Sequence[str]) -> str:
    return and_list(names) if len(names) <= _NAMED else f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"


def _those(names: Sequence[str], total: int) -> str:
    """Name few rows, count many."""
    if len(names) == total and total > _NAMED:
        return f"all {total} others"
    if len(names) > _NAMED:
        return f"{len(names)} of {total} others (nearest: {and_list(names[:3])})"
    return and_list(names)


def _uncertainty(table: Pivot) -> str:
    level = f"{100 * table.confidence:g} %"
    if any(cell.across_seeds for row in table.rows for cell in row.cells.values()):
        return f"Brackets are {level} intervals across {len(table.seeds)} seeds where these differ, else over problems."
    if len(table.seeds) == 1:
        return (
            f"Brackets are {level} intervals over {table.n:,} problems or windows. It is one seed: how much another "
            "training would change is not known."
        )
    return f"Brackets are {level} intervals over {table.n:,} problems or windows; all seeds gave the same values."


def _fairness(report: Report) -> list[str]:
    """Say whether the methods were trained equally, and met the ratios."""
    rows = report.records[~report.records.method.isin(["none", *CONTROLS])]
    if rows.empty:
        return []
    last = rows[rows.stage == "recovered"] if (rows.stage == "recovered").any() else rows
    taken = last.steps_compress + last.steps_recover
    steps = sorted({int(s) for s in taken})
    tokens = sorted({int(t) for t in last.tokens_compress + last.tokens_recover})
    budgets = sorted({int(budget) for budget in last.steps_budget} - {0})
    everywhere = last.groupby("label").steps_budget.nunique().eq(len(budgets)).all()
    if len(budgets) > 1 and everywhere and (taken == last.steps_budget).all():
        sentences = [
            f"With each of the {len(budgets)} budgets every method had the same training steps after the first "
            f"finetuning: {and_list([f'{budget:,}' for budget in budgets])}."
        ]
    elif steps == [0]:
        sentences = ["No method was trained after the first finetuning."]
    elif len(steps) == 1:
        sentences = [f"Every method had the same {steps[0]:,} training steps after the first finetuning"]
        if len(tokens) > 1 and tokens[0] > 0:
            sentences[0] += f", {tokens[0]:,} to {tokens[-1]:,} tokens"
        sentences[0] += "."
    else:
        sentences = [
            f"The methods were not trained equally: {steps[0]:,} to {steps[-1]:,} steps after the first finetuning."
        ]
    sentences += _tuned(rows)
    if report.records.method.isin(CONTROLS).any():
        sentences.append("The controls are the model after the first finetuning, rounded; nothing trains them further.")
    most = float((rows.ratio / rows.ratio_target - 1).abs().max())
    if most > 0.01:
        sentences.append(f"The achieved ratio differs from the one asked for by up to {100 * most:.1f} %.")
    return sentences


def _tuned(rows: pd.DataFrame) -> list[str]:
    """Say how learning rates were chosen and what that cost, or nothing where none was."""
    if "tuned" not in rows or (rows.tuned == "{}").all():
        return []
    cells = rows.drop_duplicates(["label", "stage", "ratio_target", "steps_budget", "seed"])
    cells = cells[cells.stage == "recovered"]
    choices = [json.loads(text) for text in cells.tuned if text != "{}"]
    if not choices:
        return []
    grids = {tuple(choice["grid"]) for choice in choices}
    if len(grids) > 1 or len(choices) < len(cells):
        return ["The methods were not tuned equally: their learning rates after compression are not all of one grid."]
    spent = sum(choice["tokens"] for choice in choices)
    at_ends = sum(choice["lr"] in (min(choice["grid"]), max(choice["grid"])) for choice in choices)
    own = int((cells.tokens_compress + cells.tokens_recover).sum())
    return [
        "Held-out training examples chose each row's learning rate after compression out of "
        f"{and_list([f'{rate:g}' for rate in min(grids)])}.",
        f"The whole grid read {spent:,} training tokens, the trainings that were chosen {own:,}; all other figures of "
        "cost are of the chosen ones alone.",
        *([_END_OF_GRID.format(at_ends, len(choices))] if at_ends else []),
    ]


def _costs(report: Report) -> list[str]:
    if not report.costs:
        return []
    seconds: Counter[str] = Counter()
    for cost in report.costs:
        seconds[cost.kind] += cost.seconds  # type: ignore[assignment]
    total = sum(seconds.values())
    if not total:
        return []
    kind, most = seconds.most_common(1)[0]
    text = (
        f"The {len(report.costs)} stages took {duration(total)} of computing; most of it, {100 * most / total:.0f} %, "
        f"was spent in {kind} stages."
    )
    return [text]
