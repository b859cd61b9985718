"""Whether the order of the methods depends on how long they are trained after compression, in sentences."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations, pairwise

from ..tables.pivot import Cell, Pivot, direction, same_but_budget
from .data import Paired
from .verdicts import SIGNIFICANCE, is_separated, lies_apart
from .words import and_list

_NAMED = 6
"""Most rows or pairs that a sentence names; more are counted."""
_Pair = tuple[str, str]


def budget_findings(tables: Sequence[Pivot], orders: Sequence[Paired]) -> list[tuple[str, list[str]]]:
    """Return a sentence a ratio, by heading, for each measure that has several budgets.

    A change of order is asserted where one row is shown to be better than another with one budget, and worse with
    another: by `orders`, or by intervals that lie apart where a pair has no test.

    Args:
        tables: of the records, as `pivot.pivot` returns them.
        orders: tests of pairs, see `Report.orders`.
    """
    numbers = {id(table): number for number, table in enumerate(tables)}
    texts = []
    for group in same_but_budget(tables):
        first = group[0]
        if not first.budget or not direction(first.metric, first.higher_is_better).endswith("is better"):
            continue
        tested = {table.budget: [test for test in orders if test.table == numbers[id(table)]] for table in group}
        ratios = sorted({ratio for table in group for row in table.rows if row.budgeted for ratio in row.cells})
        sentences = [text for ratio in ratios if (text := _sentence(group, ratio, tested))]
        if sentences:
            title = f"{first.variant}: {first.measure} with {and_list([f'{t.budget:,}' for t in group])} steps"
            texts.append((title, sentences))
    return texts


def _sentence(group: Sequence[Pivot], ratio: float, tested: Mapping[int, Sequence[Paired]]) -> str:
    """Say whether the order of the rows changes between the budgets at a ratio; empty where it cannot."""
    by_budget = {
        table.budget: {row.label: row.cells[ratio] for row in table.rows if row.budgeted and ratio in row.cells}
        for table in group
    }
    common = set.intersection(*(set(cells) for cells in by_budget.values()))
    if len(common) < 2:
        return ""
    shown: dict[_Pair, list[int]] = {}
    with_tests = True
    for table in group:
        cells = {label: cell for label, cell in by_budget[table.budget].items() if label in common}
        tests = {(t.leader, t.label): t for t in tested[table.budget] if t.ratio == ratio}
        for pair in combinations(_ordered(table, cells), 2):
            test = tests.get(pair)
            with_tests = with_tests and test is not None
            better = lies_apart(table, *(cells[name] for name in pair)) if test is None else is_separated(test)
            if better:
                shown.setdefault(pair, []).append(table.budget)
    number = sum(test.ratio == ratio for tests in tested.values() for test in tests)
    basis = (
        f"paired tests, Holm-corrected over {number} comparisons, p < {SIGNIFICANCE:g}" if with_tests else "intervals"
    )
    # Both directions of a changed pair are in `shown`: the one that holds at the smaller budget is named, once.
    changes = [pair for pair in shown if pair[::-1] in shown and min(shown[pair]) < min(shown[pair[::-1]])]
    if changes:
        parts = [
            f"{a} is ahead of {b} with {_steps(shown[a, b])} and behind it with {_steps(shown[b, a])}"
            for a, b in changes[:_NAMED]
        ]
        more = f"; {len(changes) - _NAMED} more pairs change too" if len(changes) > _NAMED else ""
        return f"At {ratio:g}×, the order of the methods changes with the budget ({basis}): {'; '.join(parts)}{more}."
    values = {table.budget: {name: table.goodness(by_budget[table.budget][name]) for name in common} for table in group}
    swapped = any(
        any(part[a] > part[b] for part in values.values()) and any(part[a] < part[b] for part in values.values())
        for a, b in combinations(common, 2)
    )
    if swapped:
        start = "estimates change their order between budgets"
        if len(common) <= _NAMED:
            start += f" ({'; '.join(_listed(table, by_budget[table.budget], common) for table in group)})"
        start += ", but no change is distinguishable from chance"
    else:
        start = "no two estimates change their order between budgets"
    always = [pair for pair, budgets in shown.items() if len(budgets) == len(group)]
    if not shown:
        return f"At {ratio:g}×, {start}; with no budget is any pair of methods distinguishable ({basis})."
    pairs = len(common) * (len(common) - 1) // 2
    return f"At {ratio:g}×, {start}; {len(always)} of {pairs} pairs are distinguishable with every budget ({basis})."


def _listed(table: Pivot, cells: Mapping[str, Cell], common: Collection[str]) -> str:
    """Return the rows of a budget, the best first, with ``=`` between equal estimates."""
    names = _ordered(table, {name: cells[name] for name in common})
    text = names[0]
    for before, name in pairwise(names):
        text += f"{' = ' if table.goodness(cells[before]) == table.goodness(cells[name]) else ', '}{name}"
    return f"{table.budget:,} steps: {text}"


def _ordered(table: Pivot, cells: Mapping[str, Cell]) -> list[str]:
    """Return the labels, the best estimate first; equal estimates by name."""
    return sorted(cells, key=lambda name: (-table.goodness(cells[name]), name))


def _steps(budgets: Sequence[int]) -> str:
    return f"{and_list([f'{budget:,}' for budget in budgets])} steps"
