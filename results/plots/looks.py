"""How lines look: one colour and one marker for each method, the same in every picture and on every page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

COLOURS = ("#0072b2", "#d55e00", "#00916a", "#c4639b", "#9c7400", "#3f97d2", "#7a5195", "#5b4b1f")
"""After Okabe and Ito (2008), whom colour-blind readers tell apart; darker where theirs has less than 3:1 on white."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS: tuple[Any, ...] = (
    *("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h", "d"),
    *((4, 1, 0), (4, 1, 45), (6, 1, 0), (3, 1, 0), (8, 1, 0)),
)
_METHODS = (
    *("svd", "fwsvd", "bs", "svd-llm", "asvd", "bsi", "drone", "svd-llm-v2", "io-svd", "laser", "sfsd", "swsd", "afm"),
    *("basis-sharing", "joint-rank-k", "magnitude", "random"),
)


UNCOMPRESSED = "none"
"""The method of records about the model before compression."""


@dataclass(frozen=True)
class Look:
    """A line's colour (``#rrggbb``), and matplotlib's marker and line style; each pair of the two is used once."""

    colour: str
    marker: Any
    dashes: Any


_BLACK = Look("#010101", "h", (0, (9, 3)))


def method_of(label: str) -> str:
    """Return the method that a label begins with; the label of ``bs:prunings=2`` is that text where it has no other."""
    return label.partition(":")[0].strip()


def looks(methods: Sequence[str]) -> list[Look]:
    """Return the looks of lines that are drawn together.

    A method's first line looks the same in every picture. Further lines of it, such as other options, have its colour
    and differ in marker and dash.

    Args:
        methods: the method of each line.
    """
    numbers = _numbers(methods)
    used = {number % len(MARKERS) for number in numbers.values()}
    lines: dict[str, int] = {}
    chosen = []
    for method in methods:
        if method == UNCOMPRESSED:
            chosen.append(_BLACK)
            continue
        number, variant = numbers[method], lines.get(method, 0)
        lines[method] = variant + 1
        marker = number % len(MARKERS) if variant == 0 else _unused(number + variant, used)
        used.add(marker)
        dashes = DASHES[(number // len(MARKERS) + variant) % len(DASHES)]
        chosen.append(Look(COLOURS[number % len(COLOURS)], MARKERS[marker], dashes))
    return chosen


def _unused(start: int, used: set[int]) -> int:
    """Return the first marker from ``start`` on that is not drawn yet, or that one where all are."""
    every = [(start + i) % len(MARKERS) for i in range(len(MARKERS))]
    return next((marker for marker in every if marker not in used), every[0])


def _numbers(methods: Sequence[str]) -> dict[str, int]:
    """Return a number for each method: its place among the built-in ones, or behind them by a hash of its name.

    A number says marker, dash and colour. Methods that are not built in get markers that are not drawn yet.
    """
    numbers = {method: _METHODS.index(method) for method in methods if method in _METHODS}
    room = len(MARKERS) * (len(DASHES) - 1)
    for method in sorted(set(methods) - {UNCOMPRESSED, *_METHODS}):
        start = crc32(method.encode()) % room
        every = [len(MARKERS) + (start + i) % room for i in range(room)]
        free = [number for number in every if number not in numbers.values()]
        used = {number % len(MARKERS) for number in numbers.values()}
        numbers[method] = next((number for number in free if number % len(MARKERS) not in used), (free or every)[0])
    return numbers
