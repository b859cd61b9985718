"""What came out: the pictures' tables, the verdicts beside the paper's numbers, and what is seen of its findings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...foundation.errors import UserError
from ...results.tables.pivot import Cell, Pivot, Row, format_value, is_fraction, pivot
from ..figures import mean_table, retained_table
from ..published.quoted import Quoted, quoted_for
from ..published.verdicts import Verdict, judge, papers_model, square_and_add
from .specs import Claim, Form, Item, Panel

if TYPE_CHECKING:
    import pandas as pd


def panel_table(frame: pd.DataFrame, panel: Panel) -> Pivot:
    """Return what a picture shows.

    Raises:
        UserError: the records lack one of its benchmarks.
    """
    tables = [table for table in pivot(frame) if table.compressed]
    chosen = []
    for name in panel.ours:
        matching = [table for table in tables if table.benchmark == name]
        if len(matching) != 1:
            raise UserError(
                f"the records have {len(matching)} tables of {name} and the picture needs one; give the run an --out "
                "of its own"
            )
        chosen += matching
    table = chosen[0] if panel.measure == "metric" or len(chosen) == 1 else mean_table(chosen, panel.benchmark)
    return retained_table(table) if panel.measure == "retained" else table


def quoted_numbers(item: Item, model: str) -> list[Quoted]:
    """Return the paper's numbers for an item: of our model where the paper has it, else of the item's own model."""
    rows = quoted_for(item.paper, [item.name])
    for name in (papers_model(model), papers_model(item.model)):
        if own := [row for row in rows if row.model == name]:
            return own
    return []


def comparable(item: Item, form: Form, model: str) -> bool:
    """Whether the paper's numbers belong into our picture: same model, same form."""
    return form is item.full and any(row.model == papers_model(model) for row in quoted_numbers(item, model))


def quoted_methods(form: Form) -> dict[str, str]:
    """Return the quoted method of each line's label."""
    return {line.label: line.method for line in form.lines}


def verdicts(
    item: Item, form: Form, model: str, tables: Sequence[tuple[Panel, Pivot]], departures: Sequence[str]
) -> list[Verdict]:
    """Return a verdict for each of the paper's numbers that belong to an item."""
    results = []
    for row in quoted_numbers(item, model):
        own = [table for panel, table in tables if panel.benchmark == row.benchmark]
        table = own[0] if own else tables[0][1] if form is item.small else None
        results.append(judge(row, table, quoted_methods(form), departures))
    return results


def findings(item: Item, form: Form, table: Pivot) -> list[str]:
    """Return a sentence for each of the paper's findings: what it says, what ours shows, and whether that agrees."""
    return [_finding(claim, form, table, form is item.small) for claim in item.claims]


def _finding(claim: Claim, form: Form, table: Pivot, small: bool) -> str:
    low, high = claim.small_ratios if small else claim.ratios
    rows = {row.label: row for row in table.rows}
    lines = [rows[line.label] for line in form.lines if line.label in rows]
    seen: list[str] = []
    readings = []
    for ratio in table.ratios:
        if not low <= ratio <= high or any(ratio not in row.cells for row in lines) or len(lines) < 2:
            continue
        first, *others = [row.cells[ratio] for row in lines]
        seen.append(_seen(claim.relation, first, others, table.higher_is_better))
        readings.append(f"{ratio:g}x {_beside(table, lines, ratio)} ({seen[-1]})")
    if not readings:
        return f"The paper: {claim.text}. Ours has no ratio to see that at."
    counts = {word: seen.count(word) for word in dict.fromkeys(seen)}
    if len(counts) > 1:
        summary = "Mixed here: " + ", ".join(f"{word} at {count}" for word, count in counts.items())
    elif claim.relation == "similar":
        summary = "Ours do not differ beyond their intervals" if "agrees" in counts else "Ours do differ"
    else:
        summary = {
            "agrees": "Seen here",
            "contrary": "The contrary is seen here",
            "open": "Open here",
        }[seen[0]]
    names = " / ".join(row.label for row in lines)
    seeds = "" if len(table.seeds) > 1 else " One seed: the intervals cover the problems, not the training."
    return f"The paper: {claim.text}. {summary}; {names}: {'; '.join(readings)}.{seeds}"


def _beside(table: Pivot, lines: Sequence[Row], ratio: float) -> str:
    values = [format_value(table.metric, row.cells[ratio].value) for row in lines]
    return " / ".join(values) + (" %" if is_fraction(table.metric) else "")


def _seen(relation: str, first: Cell, others: Sequence[Cell], higher: bool) -> str:
    # "Ahead" needs every other line beaten beyond the interval; one line ahead of ours is enough for the contrary.
    gaps = [square_and_add(_ends(first), _ends(other)) for other in others]
    ahead = [gap.low > 0 if higher else gap.high < 0 for gap in gaps]
    behind = [gap.high < 0 if higher else gap.low > 0 for gap in gaps]
    if relation == "similar":
        return "contrary" if any(ahead) or any(behind) else "agrees"
    return "agrees" if all(ahead) else "contrary" if any(behind) else "open"


def _ends(cell: Cell) -> tuple[float, float, float]:
    return cell.value, cell.low, cell.high
