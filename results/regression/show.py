"""Checks and baselines in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..tables.escape import clean
from ..tables.table import Cell, Column, Field, Table, number_columns
from ..tables.terminal import render
from .compare import Check, Comparison
from .recovery import CellName, Estimate

if TYPE_CHECKING:
    from rich.console import Console


def print_check(check: Check, console: Console) -> None:
    """Print a table for each measure, then a sentence for each fault, then notes, then the sum."""
    from rich.text import Text

    groups: dict[str, list[Comparison]] = {}
    for cell in check.cells:
        groups.setdefault(cell.name.measure, []).append(cell)
    for measure, cells in groups.items():
        columns = [Column(""), *number_columns("baseline", "now", "change", "errors", "alarm", "")]
        render([Table(f"{measure}, recovery in %", columns, [_row(cell) for cell in cells])], console)
    faults, notes = check.sentences()
    _sentences("what failed", faults, "red", console)
    _sentences("to know", notes, "", console)
    if any(cell.verdict == "rose" for cell in check.cells):
        console.print(Text("better than the baseline: 'bench baseline update' makes this run the one to keep up with"))
    console.print()
    console.print(Text(summary(check), style="bold"), soft_wrap=True)


def summary(check: Check) -> str:
    """Return one line: how many cells, how many failed, from when."""
    counted: dict[str, int] = {}
    for cell in check.cells:
        kind = cell.verdict if cell.verdict != "same" or not cell.faults else "other size"
        counted[kind] = counted.get(kind, 0) + 1
    kinds = ", ".join(f"{count} {kind}" for kind, count in counted.items())
    verdict = f"FAILED: {len(check.failed)} of {len(check.cells)} cells" if check.failed else "passed"
    return f"{verdict} ({kinds})"


def print_baseline(cells: Mapping[CellName, Estimate], console: Console) -> None:
    """Print the recoveries that a baseline holds."""
    groups: dict[str, list[tuple[CellName, Estimate]]] = {}
    for name, estimate in cells.items():
        groups.setdefault(name.measure, []).append((name, estimate))
    for measure, members in groups.items():
        columns = [Column(""), *number_columns("value", "recovery %", "± problems", "± seeds", "ratio", "seeds")]
        render([Table(measure, columns, [_baseline_row(name, estimate) for name, estimate in members])], console)


def _baseline_row(name: CellName, estimate: Estimate) -> tuple[str, ...]:
    scale = 1 / estimate.mean if name.uncompressed and estimate.mean else 1.0
    numbers = (estimate.mean * scale, estimate.problems * scale, math.sqrt(estimate.seed_variance) * scale)
    return (
        *(name.row, f"{estimate.metric:.4g}", *(_percent(number) for number in numbers)),
        *(f"{estimate.ratio:.3f}×", ",".join(map(str, estimate.seeds))),
    )


def _row(cell: Comparison) -> list[Cell]:
    word = cell.verdict if cell.verdict != "same" or not cell.faults else "other size"
    shown = word.upper() if cell.faults else "" if word == "same" else word
    return [
        *(cell.name.row, _percent(cell.before), _percent(cell.after)),
        *(f"{100 * cell.change:+.1f}" if math.isfinite(cell.change) else "", _signed(cell.sigmas)),
        f"{cell.threshold:.1f}" if math.isfinite(cell.threshold) else "",
        Field(shown, kind="alarm" if cell.faults else ""),
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if math.isfinite(value) else "–"


def _signed(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.1f}"


def _sentences(title: str, sentences: list[str], style: str, console: Console) -> None:
    from rich.text import Text

    if sentences:
        console.print()
        console.print(Text(title, style=f"bold {style}".strip()))
    for sentence in sentences:
        console.print(Text(f"  {clean(sentence)}"), soft_wrap=True)
