"""Charts as inline SVG: small, themed by the page, told apart by shape and dash, the same bytes each time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from .shell import TEMPLATES, environment, shorten

WIDTH, HEIGHT = 760, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 190, 14, 52
_LABEL_HEIGHT = 13
COLOURS = 8
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2 1 2 1 2")
_HUGE = 1e300
"""Numbers beyond this are not drawn: their differences would not fit a float."""

_AS_ZERO = 1e-300
"""Numbers nearer to 0 than this are drawn as 0: their fractions would not fit a float."""

_EXPONENTS = 307
"""Powers of ten up to this one, and their inverses, are floats."""

_LOGARITHMIC_FROM = 8
"""Values whose largest is this many times the least are drawn on a logarithmic axis."""

MARKERS = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z",  # circle
    "M-4-4h8v8h-8z",  # square
    "M0-5L5 4h-10z",  # triangle
    "M0-5.5L5.5 0L0 5.5L-5.5 0z",  # diamond
    "M0 5L5-4h-10z",  # triangle, down
    "M-1.7-5h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3v-3.4h3.3z",  # plus
    "M-5 0L4-5v10z",  # triangle, left
    "M5 0L-4-5v10z",  # triangle, right
    "M0-6L1.8-1.8L6 0L1.8 1.8L0 6L-1.8 1.8L-6 0L-1.8-1.8z",  # star with four points
    "M-4-2.3L0-4.9L4-2.3V2.3L0 4.9L-4 2.3z",  # hexagon
    "M-4.5-2.4L-2.4-4.5L0-2.1L2.4-4.5L4.5-2.4L2.1 0L4.5 2.4L2.4 4.5L0 2.1L-2.4 4.5L-4.5 2.4L-2.1 0z",  # cross
    "M0.0 -6.0L1.5 -2.1L5.7 -1.9L2.5 0.8L3.5 4.9L0.0 2.6L-3.5 4.9L-2.5 0.8L-5.7 -1.9L-1.5 -2.1z",  # star
    "M-4.5-5h9L1 0L4.5 5h-9L-1 0z",  # hourglass
    "M-5-4.5L0-1L5-4.5v9L0 1L-5 4.5z",  # bow tie
    "M-6-2h12v4h-12z",  # bar
    "M-2-6h4v12h-4z",  # bar, upright
    "M-5 2.5A5 5 0 0 1 5 2.5z",  # half circle
    "M-5-2.5A5 5 0 0 0 5-2.5z",  # half circle, down
)


@dataclass(frozen=True)
class Point:
    """A measured point; ``low`` and ``high`` end its interval and may be infinite.

    Attributes:
        text: what a pointer resting on it shows.
        label: written beside it.
        hollow: drawn as an outline, such as a point that others dominate.
    """

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    text: str = ""
    label: str = ""
    hollow: bool = False


@dataclass(frozen=True)
class Series:
    """Points of one name in the order in which a line goes through them."""

    name: str
    points: Sequence[Point]
    line: bool = True


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        label: with the unit.
        scale: values are divided by it for the tick labels.
        logarithmic: None decides by the range of the values.
        ticks: where to put ticks; none leaves it to the range.
        suffix: behind every tick label.
    """

    label: str
    scale: float = 1.0
    logarithmic: bool | None = None
    ticks: Sequence[float] = ()
    suffix: str = ""


def chart(
    id: str,
    title: str,
    description: str,
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    references: Sequence[tuple[str, float]] = (),
    front: Sequence[tuple[float, float]] = (),
) -> Markup:
    """Return a chart; the table beside it is its text alternative in full, ``description`` the one in short.

    Args:
        id: unique on the page.
        title: for people who cannot see it; the caption is the caller's.
        description: what the picture shows, in a sentence or two.
        x, y: axes.
        series: lines or groups of points; points that are not finite are left out.
        references: horizontal lines with their names, such as the uncompressed model.
        front: a line through these points, such as a `staircase`.

    Raises:
        ValueError: there is no finite point.
    """
    shown = [(s, [p for p in s.points if abs(p.x) < _HUGE and abs(p.y) < _HUGE]) for s in series]
    references = [(name, value) for name, value in references if abs(value) < _HUGE]
    if not any(points for _, points in shown):
        raise ValueError("a chart needs a finite point")
    xs = [p.x for _, points in shown for p in points]
    ys = [p.y for _, points in shown for p in points] + [value for _, value in references]
    ends = [e for _, points in shown for p in points for e in (p.low, p.high) if math.isfinite(e)]
    across = _Scale(x, xs, _LEFT, WIDTH - _RIGHT)
    up = _Scale(y, ys, HEIGHT - _BOTTOM, _TOP, ends)
    lines: list[dict[str, Any]] = []
    for number, (one, points) in enumerate(shown):
        if not points:
            continue
        drawn = [
            {
                "x": across(p.x),
                "y": up(p.y),
                "low": up(p.low if math.isfinite(p.low) else p.y),
                "high": up(p.high if math.isfinite(p.high) else p.y),
                "text": shorten(p.text),
                "label": p.label,
                "hollow": p.hollow,
            }
            for p in points
        ]
        lines.append(
            {
                "name": shorten(one.name, 30),
                "colour": number % COLOURS,
                "dash": DASHES[(number + number // len(MARKERS)) % len(DASHES)],
                "marker": f"{id}-m{number % len(MARKERS)}",
                "points": drawn,
                "path": " ".join(f"{p['x']},{p['y']}" for p in drawn) if one.line and len(drawn) > 1 else "",
                "end": (drawn[-1]["x"], drawn[-1]["y"]),
            }
        )
    _thin_out([point for line in lines for point in line["points"]])
    levels = [{"name": shorten(name, 30), "y": up(value)} for name, value in references]
    _spread([*lines, *levels])
    template = environment(Path(TEMPLATES)).get_template("chart.svg")
    return Markup(
        template.render(
            id=id,
            title=title,
            description=description,
            width=WIDTH,
            height=HEIGHT,
            left=_LEFT,
            right=WIDTH - _RIGHT,
            top=_TOP,
            bottom=HEIGHT - _BOTTOM,
            x=x,
            y=y,
            x_ticks=across.ticks(6),
            y_ticks=up.ticks(6),
            lines=lines,
            levels=levels,
            markers=sorted({(int(line["marker"].rpartition("m")[2]), line["marker"]) for line in lines}),
            shapes=MARKERS,
            front=" ".join(f"{across(a)},{up(b)}" for a, b in front),
        )
    )


def pareto(points: Sequence[tuple[float, float]], less_x: bool, less_y: bool) -> list[bool]:
    """Return which points no other point beats: as good in both and better in one.

    Args:
        points: x and y.
        less_x, less_y: whether less is better.
    """
    costs = [(a if less_x else -a, b if less_y else -b) for a, b in points]
    return [
        not any(p <= a and q <= b and (p, q) != (a, b) for p, q in costs) and math.isfinite(a) and math.isfinite(b)
        for a, b in costs
    ]


def staircase(front: Sequence[tuple[float, float]], less_x: bool) -> list[tuple[float, float]]:
    """Return a front as the line of what is reached: between two of its points only what the better-placed one reaches.

    Args:
        front: x and y of points that `pareto` kept.
        less_x: as there.
    """
    corners: list[tuple[float, float]] = []
    for point in sorted(front):
        if corners:
            corners.append((point[0], corners[-1][1]) if less_x else (corners[-1][0], point[1]))
        corners.append(point)
    return corners


def _spread(items: Sequence[dict[str, Any]]) -> None:
    """Give each item a place for its label beside the plot, near its end and one below the other."""
    wanted = sorted(items, key=lambda item: _height(item))
    room = HEIGHT - 2 * _LABEL_HEIGHT
    step = min(_LABEL_HEIGHT, room / max(1, len(wanted)))
    places: list[float] = []
    for item in wanted:
        places.append(max(_height(item), places[-1] + step if places else _TOP))
    floor = HEIGHT - _LABEL_HEIGHT
    for i in range(len(places) - 1, -1, -1):
        places[i] = min(places[i], floor - (len(places) - 1 - i) * step)
    for item, place in zip(wanted, places, strict=True):
        item["label_y"] = round(place, 1)


def _thin_out(points: Sequence[dict[str, Any]]) -> None:
    """Drop labels that would be written over another one."""
    written: list[dict[str, Any]] = []
    for point in points:
        if point["label"] and any(abs(p["x"] - point["x"]) < 30 and abs(p["y"] - point["y"]) < 12 for p in written):
            point["label"] = ""
        written += [point] if point["label"] else []


def _height(item: dict[str, Any]) -> float:
    return float(item["end"][1] if "end" in item else item["y"])


class _Scale:
    """From values to pixels."""

    def __init__(self, axis: Axis, values: Sequence[float], start: int, end: int, ends: Sequence[float] = ()) -> None:
        values = [value if abs(value) >= _AS_ZERO else 0.0 for value in values]
        least, most = min(values), max(values)
        # A wide interval is cut at the plot's edge: the points are to stay apart.
        room = (most - least) or abs(most) or 1.0
        low = min([least, *(max(e, least - room) for e in ends)])
        high = max([most, *(min(e, most + room) for e in ends)])
        logarithmic = axis.logarithmic
        if logarithmic is None:
            logarithmic = least > 0 and most / least > _LOGARITHMIC_FROM
        self.logarithmic = logarithmic and least > 0
        low = max(low, least / 2) if self.logarithmic else low
        self.axis, self.start, self.end = axis, start, end
        a, b = self._turn(low), self._turn(high)
        margin = 0.04 * (b - a) or abs(a) * 0.1 or 1.0
        self.low, self.high = a - margin, b + margin
        if self.logarithmic:
            self.low, self.high = max(self.low, -_EXPONENTS), min(self.high, _EXPONENTS)

    def _turn(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value

    def __call__(self, value: float) -> float:
        place = self._turn(value) if value > 0 or not self.logarithmic else self.low
        share = (min(max(place, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, count: int) -> list[tuple[float, str]]:
        """Return places in pixels, and labels; those that would touch their neighbour are left out."""
        values = [t for t in self.axis.ticks or self._values(count) if self.low <= self._turn(t) <= self.high]
        kept: list[tuple[float, str]] = []
        apart = 46 if self.start < self.end else 18
        for value in values:
            place = self(value)
            if not kept or abs(place - kept[-1][0]) >= apart:
                kept.append((place, f"{value / self.axis.scale:,.6g}{self.axis.suffix}"))
        return kept

    def _values(self, count: int) -> list[float]:
        if self.logarithmic:
            first, last = math.floor(self.low), math.ceil(self.high)
            digits = (1, 2, 5) if last - first <= 4 else (1,)
            unit = self.axis.scale
            found = [d * 10.0**e for e in range(first, last + 1) for d in digits]
            inside = [v for v in found if self.low <= math.log10(v) <= self.high]
            if len(inside) >= 3 or unit != 1:
                return inside
            low, high = 10**self.low, 10**self.high
        else:
            low, high = self.low, self.high
        raw = (high - low) / count
        size = 10.0 ** math.floor(math.log10(raw))
        step = next(size * d for d in (1, 2, 2.5, 5, 10) if size * d >= raw)
        return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
