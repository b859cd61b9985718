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
    *("basis-sharing", "joint-rank-k", "magnitude", "random", "aa", "zs-svd", "rtn-int8", "rtn-int4", "rtn4+r"),
)
UNCOMPRESSED = "none"
"""The method of records about the model before compression."""


@dataclass(frozen=True)
class Look:
    """A line's colour (``#rrggbb``), and matplotlib's marker and line style; each pair of the two is used once."""

    colour: str
    marker: Any
    dashes: Any


@dataclass(frozen=True)
class _Numbers:
    """Which colour, marker and dash a method's first line has."""

    colour: int
    marker: int
    dash: int


_BLACK = Look("#010101", "h", (0, (9, 3)))
# Methods of one colour differ in the dash, which is seen where markers are small.
_BUILT_IN = {
    method: _Numbers(number % len(COLOURS), number % len(MARKERS), number // len(COLOURS))
    for number, method in enumerate(_METHODS)
}
_OTHERS = [
    _Numbers(marker % len(COLOURS), marker, dash)
    for dash in range(len(DASHES))
    for marker in range(len(MARKERS))
    if (marker, dash) not in {(numbers.marker, numbers.dash) for numbers in _BUILT_IN.values()}
]


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
    used = {entry.marker for entry in numbers.values()}
    lines: dict[str, int] = {}
    chosen = []
    for method in methods:
        if method == UNCOMPRESSED:
            chosen.append(_BLACK)
            continue
        first, variant = numbers[method], lines.get(method, 0)
        lines[method] = variant + 1
        marker = first.marker if variant == 0 else _unused(first.marker + variant, used)
        used.add(marker)
        dashes = DASHES[(first.dash + variant) % len(DASHES)]
        chosen.append(Look(COLOURS[first.colour], MARKERS[marker], dashes))
    return chosen


def _unused(start: int, used: set[int]) -> int:
    """Return the first marker from ``start`` on that is not drawn yet, or that one where all are."""
    every = [(start + i) % len(MARKERS) for i in range(len(MARKERS))]
    return next((marker for marker in every if marker not in used), every[0])


def _numbers(methods: Sequence[str]) -> dict[str, _Numbers]:
    """Return what each method's first line looks like: of the built-in ones always the same.

    Others take of what is left by a hash of their name, with a marker that is not drawn yet where there is one.
    """
    numbers = {method: _BUILT_IN[method] for method in methods if method in _BUILT_IN}
    for method in sorted(set(methods) - {UNCOMPRESSED, *_BUILT_IN}):
        start = crc32(method.encode()) % len(_OTHERS)
        every = _OTHERS[start:] + _OTHERS[:start]
        free = [entry for entry in every if entry not in numbers.values()]
        used = {entry.marker for entry in numbers.values()}
        numbers[method] = next((entry for entry in free if entry.marker not in used), (free or every)[0])
    return numbers
