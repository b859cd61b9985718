"""Charts on pages: drawn in the page's colours, distinguished by marker and dash, the same bytes each time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ..plots.axes import log_locator
from ..plots.curves import plain
from ..plots.looks import Look, looks, method_of
from ..tables.names import shorten, shorten_all, wrap
from .inline import INK, PAPER, SOFT, inline_svg, page_style

_HUGE = 1e100
"""Numbers beyond this are not drawn: their differences would not fit a float."""

_AS_ZERO = 1e-100
"""Numbers nearer to 0 than this are drawn as 0: their fractions would not fit a float."""

_LOGARITHMIC_FROM = 8
"""Values whose largest is this many times the least are drawn on a logarithmic axis."""
_TICKS_APART = 0.06
"""Share of an axis below which two ticks would touch."""


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
    """Points of one name in the order in which a line goes through them; the method decides how they look."""

    name: str
    points: Sequence[Point]
    line: bool = True
    method: str = ""


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
    """Return a chart; the table beside it is its text alternative in full, ``description`` the line in short.

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
    shown = [(line, points) for line, points in shown if points]
    levels = [(name, value) for name, value in references if abs(value) < _HUGE]
    if not shown:
        raise ValueError("a chart needs a finite point")
    tips: dict[str, str] = {}
    with page_style():
        figure, axes = _new_figure(len(shown) + len(levels))
        every = [p for _, points in shown for p in points]
        ends = [e for p in every for e in (p.low, p.high) if math.isfinite(e)]
        _scale(axes.xaxis, x, [p.x for p in every])
        _scale(axes.yaxis, y, [p.y for p in every] + [value for _, value in levels], ends)
        handles = [
            axes.axhline(value, color=INK, linestyle=(0, (9, 3 + i)), linewidth=1.2)
            for i, (_, value) in enumerate(levels)
        ]
        if front:
            axes.plot(*zip(*front, strict=True), color=INK, linestyle=(0, (6, 3)), linewidth=1.2)
        chosen = looks([line.method or method_of(line.name) for line, _ in shown])
        for number, ((line, points), look) in enumerate(zip(shown, chosen, strict=True)):
            handles.append(_draw(axes, line, points, look, f"p{number}", tips))
        _write_labels(axes, every)
        names = [name for name, _ in levels] + [line.name for line, _ in shown]
        short = shorten_all(names)
        _legend(figure, handles, [plain(wrap(short[name], 40), keep="\n") for name in names])
        return inline_svg(figure, id, f"{title}. {description}", tips)


def _new_figure(entries: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(8.4, 4.2 + 0.08 * entries), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(True, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _draw(axes: Any, series: Series, points: Sequence[Point], look: Look, name: str, tips: dict[str, str]) -> Any:
    """Draw a series and return the handle of its legend entry."""
    from matplotlib.lines import Line2D

    line: dict[str, Any] = {"color": look.colour, "linestyle": look.dashes if series.line else "none", "linewidth": 1.7}
    marked: dict[str, Any] = {
        "marker": look.marker,
        "markersize": 7.5,
        "markeredgewidth": 0.6,
        "markeredgecolor": PAPER,
    }
    if series.line and len(points) > 1:
        axes.plot([p.x for p in points], [p.y for p in points], **line, zorder=3)
    for number, point in enumerate(points):
        low, high = (end if math.isfinite(end) else point.y for end in (point.low, point.high))
        if low != high:
            axes.plot([point.x, point.x], [low, high], color=look.colour, linewidth=1, alpha=0.55, zorder=2)
        gid = f"{name}-{number}"
        tips[gid] = shorten(point.text)
        drawn = line | marked | {"linestyle": "none"}
        if point.hollow:
            drawn |= {"markerfacecolor": PAPER, "markeredgecolor": look.colour, "markeredgewidth": 1.4}
        axes.plot([point.x], [point.y], **drawn, zorder=4, gid=gid)
    return Line2D([], [], **line, **marked)


def _write_labels(axes: Any, points: Sequence[Point]) -> None:
    """Write the labels of points beside them, but for those that would be written over another one."""
    written: list[tuple[float, float]] = []
    for point in points:
        if not point.label:
            continue
        across, up = axes.transAxes.inverted().transform(axes.transData.transform((point.x, point.y)))
        if all(abs(across - a) > 0.055 or abs(up - b) > 0.05 for a, b in written):
            written.append((across, up))
            style = {"xytext": (5, 4), "textcoords": "offset points", "fontsize": 8.5, "color": SOFT}
            axes.annotate(plain(point.label), (point.x, point.y), **style)


def _legend(figure: Any, handles: Sequence[Any], names: Sequence[str]) -> None:
    longest = max(len(line) for name in names for line in name.split("\n"))
    columns = 2 if longest > 28 else min(3, len(names))
    # To the left: on a phone, pictures are cut off on the right until they are scrolled.
    style = {"loc": "outside lower left", "ncols": columns, "frameon": False, "handlelength": 3.4}
    figure.legend(handles, names, fontsize=9, **style)


def _scale(drawn: Any, axis: Axis, values: Sequence[float], ends: Sequence[float] = ()) -> None:
    """Set scale, limits, ticks and label of one of matplotlib's axes."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    values = [value if abs(value) >= _AS_ZERO else 0.0 for value in values]
    least, most = min(values), max(values)
    # A wide interval is cut at the plot's edge: the points are to stay apart.
    room = (most - least) or abs(most) or 1.0
    low = min([least, *(max(e, least - room) for e in ends)])
    high = max([most, *(min(e, most + room) for e in ends)])
    logarithmic = least > 0 and (most / least > _LOGARITHMIC_FROM if axis.logarithmic is None else axis.logarithmic)
    set_limits = drawn.axes.set_xlim if drawn.axis_name == "x" else drawn.axes.set_ylim
    if logarithmic:
        low = max(low, least / 2)
        margin = (high / low) ** 0.04 if high > low else 1.1
        limits = low / margin, high * margin
        drawn._set_axes_scale("log")
    else:
        margin = 0.04 * (high - low) or abs(low) * 0.1 or 1.0
        limits = low - margin, high + margin
    set_limits(*limits)
    ticks: list[float] = []
    turn = math.log if logarithmic else float
    for tick in axis.ticks:
        near = ticks and turn(tick) - turn(ticks[-1]) < _TICKS_APART * (turn(limits[1]) - turn(limits[0]))
        ticks += [] if near or not limits[0] <= tick <= limits[1] else [tick]
    wide = logarithmic and limits[1] / limits[0] > 10
    drawn.set_major_locator(FixedLocator(ticks) if ticks else log_locator(*limits) if wide else MaxNLocator(6))
    drawn.set_minor_locator(NullLocator())
    drawn.set_major_formatter(FuncFormatter(lambda v, _: f"{v / axis.scale:,.6g}{axis.suffix}"))
    drawn.set_label_text(plain(axis.label))


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
