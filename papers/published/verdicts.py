"""The verdict beside ours: is a quoted number reproduced, not reproduced, or not comparable, and why.

The rule. Ours and the quoted number are compared only under equal conditions. Then the difference gets a 95 % interval
from both intervals by square-and-add (Newcombe, Statistics in Medicine 17, 1998, method 10): ours is the measured one,
the quoted one is Wilson's on the paper's own number of problems, or the number alone where that is not known. The
number is *reproduced* if that interval comes within the number's rounding of 0; a number that is an upper bound, if the
interval reaches below the bound. An interval that is too wide decides nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ...records.bos import variant_without
from ...records.intervals import wilson
from ...results.tables.pivot import Cell, Pivot, Row, format_cell, is_perplexity
from .quoted import PARAMETERS, Quoted

Outcome = Literal["reproduced", "not reproduced", "not comparable"]

TELLING = 0.15
"""Half of the difference's interval may be this wide: 15 points of a share, 15 % of a quoted perplexity."""

SAME_RATIO = 0.02
"""Relative difference of two ratios that still count as one."""

_NAMES = {
    "llama-7b": ("huggyllama/llama-7b",),
    "llama2-7b": ("meta-llama/llama-2-7b-hf", "llama-2-7b-hf"),
    "llama2-13b": ("meta-llama/llama-2-13b-hf", "llama-2-13b-hf"),
    "mistral-7b": ("mistralai/mistral-7b-v0.1", "mistral-7b-v0.1"),
}
_SAME_METRICS = (
    frozenset({"pass@1", "accuracy"}),  # one greedy completion a problem
    frozenset({"accuracy", "acc", "acc_norm", "mean accuracy"}),
)


class Difference(NamedTuple):
    """Ours minus the other, with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """What is to be said of one quoted number beside ours.

    Attributes:
        reason: why; a sentence without its full stop.
        ours: our cell at the quoted place, where there is one.
    """

    quoted: Quoted
    outcome: Outcome
    reason: str
    ours: Cell | None = None
    metric: str = ""

    @property
    def ours_shown(self) -> str:
        """Our value with its interval, or nothing."""
        return "" if self.ours is None else " ".join(format_cell(self.metric, self.ours))


def papers_model(name: str) -> str:
    """Return the papers' name of a model of ours, or the name itself.

    A local folder's name ends in the first digits of its hash (`models.presets.ModelSource`), which are left out here.
    """
    plain = re.sub(r"-[0-9a-f]{8}$", "", name.lower())
    return next((known for known, others in _NAMES.items() if plain == known or plain in others), name)


def square_and_add(ours: Sequence[float], other: Sequence[float]) -> Difference:
    """Return the difference of two estimates, each (value, low, high), with Newcombe's interval."""
    (a, a_low, a_high), (b, b_low, b_high) = ours, other
    # The lower end of a - b is reached with a's lower and b's upper end, so each end has two distances of its own.
    gap = a - b
    return Difference(gap, gap - math.hypot(a - a_low, b_high - b), gap + math.hypot(a_high - a, b - b_low))


def judge(
    quoted: Quoted,
    table: Pivot | None,
    methods: Mapping[str, str],
    departures: Sequence[str] = (),
) -> Verdict:
    """Compare one quoted number with our table.

    Args:
        quoted: the number.
        table: our results on its benchmark; None where there are none.
        methods: the quoted method of each label of the table.
        departures: what else our run did differently, each a clause such as ``ours trained 200 steps``.
    """
    row = _row(quoted, table, methods)
    cell = _cell(quoted, row)
    metric = table.metric if table else ""
    obstacles = [*_obstacles(quoted, table, row, cell), *departures]
    if obstacles or table is None or cell is None:
        return Verdict(quoted, "not comparable", "; ".join(dict.fromkeys(obstacles)), cell, metric)
    gap = square_and_add((cell.value, cell.low, cell.high), _quoted_interval(quoted))
    scale = quoted.number if is_perplexity(table.metric) else 1.0
    if (gap.high - gap.low) / 2 > TELLING * scale:
        wide = "the interval of the difference is too wide to tell; evaluate more problems or seeds"
        return Verdict(quoted, "not comparable", wide, cell, metric)
    near = gap.low <= quoted.slack and (quoted.certainty == "upper bound" or gap.high >= -quoted.slack)
    return Verdict(quoted, "reproduced" if near else "not reproduced", _difference_sentence(quoted, gap), cell, metric)


def _difference_sentence(quoted: Quoted, gap: Difference) -> str:
    unit, size = ("points", 100) if quoted.unit == "%" else ("of perplexity", 1)
    text = f"difference {gap.value * size:+.1f} [{gap.low * size:+.1f}, {gap.high * size:+.1f}] {unit}"
    if quoted.certainty == "upper bound":
        text += " from the bound"
    return text + ("; the source does not say how answers were graded" if quoted.grader == "not stated" else "")


def _quoted_interval(quoted: Quoted) -> tuple[float, float, float]:
    value = quoted.number
    # Without n, or for a perplexity, nothing is known of the paper's own spread: the interval is ours alone.
    if quoted.n is None or quoted.unit != "%":
        return value, value, value
    ends = wilson(round(value * quoted.n), quoted.n)
    # Wilson's interval is of a rounded count, so near 0 or 1 the printed value may lie just outside of it.
    return value, min(ends.low, value), max(ends.high, value)


def _row(quoted: Quoted, table: Pivot | None, methods: Mapping[str, str]) -> Row | None:
    rows = [
        row
        for row in (table.rows if table else ())
        if (row.uncompressed if quoted.method == "none" else methods.get(row.label) == quoted.method)
    ]
    # Uncompressed, a paper with finetuning quotes the finetuned model, whose row comes after the pretrained one's.
    return (rows[-1] if quoted.method == "none" else rows[0]) if rows else None


def _cell(quoted: Quoted, row: Row | None) -> Cell | None:
    cells = [c for c in (row.cells.values() if row else ()) if _near(_ratio(quoted, c), quoted.ratio)]
    return min(cells, key=lambda c: abs(_ratio(quoted, c) - quoted.ratio), default=None)


def _ratio(quoted: Quoted, cell: Cell) -> float:
    return cell.ratio_matrices if quoted.size_of == "matrices" else cell.ratio


def _near(a: float, b: float) -> bool:
    return abs(a / b - 1) <= SAME_RATIO


def _obstacles(quoted: Quoted, table: Pivot | None, row: Row | None, cell: Cell | None) -> list[str]:
    """Return the reasons why the two may not be compared."""
    reasons = []
    if quoted.certainty == "ambiguous":
        reasons.append(f"the source is ambiguous: {quoted.note}")
    if table is None:
        return [*reasons, f"ours has no {quoted.benchmark}"]
    if papers_model(table.model) != quoted.model:
        reasons.append(f"other model: ours is {table.model}, theirs {quoted.model}")
    elif cell is not None and quoted.model in PARAMETERS:
        # A local folder may have the paper's name and other weights; its size before compression shows that.
        counted = cell.ratio * cell.params
        if abs(counted / PARAMETERS[quoted.model] - 1) > 1e-3:
            reasons.append(f"ours is called {table.model} but has {counted:,.0f} parameters")
    if table.benchmark != quoted.benchmark:
        reasons.append(f"other benchmark: ours is {table.benchmark}, theirs {quoted.benchmark}")
    if table.metric != quoted.metric and not any({table.metric, quoted.metric} <= same for same in _SAME_METRICS):
        reasons.append(f"other metric: ours is {table.metric}, theirs {quoted.metric}")
    variant = variant_without(table.variant) or table.variant
    window = re.search(r"-(\d+)$", variant) if is_perplexity(table.metric) else None
    if quoted.context and window and int(window[1]) != quoted.context:
        reasons.append(f"other context: ours has {window[1]} tokens, theirs {quoted.context}")
    if is_perplexity(table.metric) and variant != table.variant:
        reasons.append("other windows: ours begin with a BOS each, theirs do not; measure with --bos never")
    if quoted.shots is not None and (shots := re.search(r"(\d+)shot", table.variant)) and int(shots[1]) != quoted.shots:
        reasons.append(f"other prompt: ours has {shots[1]} examples, theirs {quoted.shots}")
    if quoted.n is not None and quoted.n != table.n:
        reasons.append(f"other problems: ours are {table.n:,}, theirs {quoted.n:,}")
    if row is None:
        reasons.append(f"ours has no {quoted.method}")
    elif cell is None:
        reasons.append(f"ours was not measured at {quoted.ratio:.3g}x")
    elif quoted.method != "none" and quoted.training != "unclear" and (quoted.training == "none") != (cell.tokens == 0):
        reasons.append(f"other training after compression: theirs {'none' if quoted.training == 'none' else 'some'}")
    if cell is not None and not (math.isfinite(cell.low) and math.isfinite(cell.high)):
        reasons.append("ours has no interval")
    return reasons
