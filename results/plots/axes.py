"""What curves are drawn over: the achieved ratio, bytes on disk or in memory, decoding speed, or training tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..tables.pivot import Cell, Row

_LOGARITHMIC_FROM = 8
"""Values whose largest is this many times the least are drawn on a logarithmic axis."""
_FEW_DECADES = 1e5
"""Up to this many times its ticks lie at 1, 2 and 5 of each decade, beyond at powers of ten."""


@dataclass(frozen=True)
class XAxis:
    """One kind of x-axis.

    Attributes:
        name: as ``bench plot --x`` takes it.
        label: with the unit; ``{unit}`` becomes a prefixed unit of bytes.
        value: of a cell; NaN where it was not measured.
        order: in which lines go from cell to cell.
    """

    name: str
    label: str
    value: Callable[[Cell], float]
    order: Callable[[Cell], float] = lambda cell: cell.ratio

    def cells(self, row: Row) -> list[Cell]:
        """Return the cells of a row that can be drawn, in the order in which the line goes through them."""
        drawable = [c for c in row.cells.values() if math.isfinite(c.value) and math.isfinite(self.value(c))]
        return sorted(drawable, key=self.order)


AXES = {
    axis.name: axis
    for axis in (
        XAxis("ratio", "achieved ratio, original / compressed parameters of the whole model", lambda c: c.ratio),
        XAxis("bytes", "weights on disk [{unit}]", lambda c: c.bytes),
        XAxis("runtime_bytes", "weights in memory [{unit}]", lambda c: c.runtime_bytes),
        XAxis("tokens_per_second", "decoding speed [tokens/s]", lambda c: c.tokens_per_second),
    )
}


def log_locator(low: float, high: float) -> Any:
    """Return a locator of ticks for a logarithmic axis with values from ``low`` to ``high``.

    Over many decades matplotlib leaves some out, and with ``subs`` it then draws no tick at all.
    """
    from matplotlib.ticker import LogLocator

    return LogLocator(subs=(1, 2, 5)) if high / low < _FEW_DECADES else LogLocator(numticks=8)


def set_x_axis(axes: Any, axis: XAxis, lines: Sequence[Row], references: Sequence[Row]) -> None:
    """Scale, label and tick the x-axis and the one above it."""
    if axis.name == "ratio":
        _ratio_axis(axes, axis, lines)
    else:
        _measured_axis(axes, axis, lines, references)


def _ratio_axis(axes: Any, axis: XAxis, lines: Sequence[Row]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    achieved = [cell.ratio for row in lines for cell in row.cells.values()]
    margin = max(1.08, (max(achieved) / min(achieved)) ** 0.06)
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(achieved) / margin, max(achieved) * margin)
    ratios = sorted({ratio for row in lines for ratio in row.cells})
    # Models may miss all their targets by so much that none lies on the axis, which would then have no tick at all.
    ticks = _apart(ratios, axes.get_xlim(), logarithmic=True) or [math.sqrt(math.prod(axes.get_xlim()))]
    axes.set_xlabel(axis.label)
    top = axes.secondary_xaxis("top")
    top.set_xlabel("parameters kept [%]")
    top.spines["top"].set_visible(True)
    texts = [f"{ratio:.3g}×" for ratio in ticks], [f"{100 / ratio:.3g}" for ratio in ticks]
    for side, labels in zip((axes.xaxis, top.xaxis), texts, strict=True):
        side.set_major_locator(FixedLocator(ticks))
        side.set_minor_locator(NullLocator())
        side.set_ticklabels(labels)


def _measured_axis(axes: Any, axis: XAxis, lines: Sequence[Row], references: Sequence[Row]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    values = [axis.value(cell) for row in [*lines, *references] for cell in axis.cells(row)]
    low, high = min(values), max(values)
    logarithmic = high / low > _LOGARITHMIC_FROM
    if logarithmic:
        axes.set_xscale("log")
        margin = (high / low) ** 0.06
        axes.set_xlim(low / margin, high * margin)
    else:
        margin = 0.06 * (high - low) or 0.1 * high
        axes.set_xlim(low - margin, high + margin)
    unit, size = next((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1.0)) if high >= s or s == 1)
    size = size if "{unit}" in axis.label else 1.0
    axes.set_xlabel(axis.label.format(unit=unit))
    axes.xaxis.set_major_locator(log_locator(low, high) if logarithmic else MaxNLocator(7))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / size:.4g}"))
    if axis.name == "bytes" and len({row.bits for row in lines if not row.control}) > 1:
        return  # one ratio is at several sizes, so that their mean is no ratio's
    ratio_by_x = _ratio_places(axis, lines)
    top = axes.secondary_xaxis("top")
    top.set_xlabel("ratio asked for (at the mean of its points)")
    top.spines["top"].set_visible(True)
    ticks = _apart(sorted(ratio_by_x), axes.get_xlim(), logarithmic)
    top.xaxis.set_major_locator(FixedLocator(ticks))
    top.xaxis.set_minor_locator(NullLocator())
    top.xaxis.set_ticklabels([f"{ratio_by_x[x]:.3g}×" for x in ticks])


def _ratio_places(axis: XAxis, lines: Sequence[Row]) -> dict[float, float]:
    """Return the target ratios by the mean x of the points that were asked for them."""
    values_by_ratio: dict[float, list[float]] = {}
    for row in (row for row in lines if not row.control):  # which were asked for no ratio
        for ratio, cell in row.cells.items():
            if math.isfinite(axis.value(cell)):
                values_by_ratio.setdefault(ratio, []).append(axis.value(cell))
    return {sum(values) / len(values): ratio for ratio, values in values_by_ratio.items()}


def _apart(positions: Sequence[float], limits: tuple[float, float], logarithmic: bool) -> list[float]:
    """Return the positions inside the limits that lie far enough apart for their labels."""
    turn = math.log if logarithmic else float
    apart = 0.07 * (turn(limits[1]) - turn(limits[0]))
    ticks: list[float] = []
    for position in positions:
        if limits[0] <= position <= limits[1] and (not ticks or turn(position) - turn(ticks[-1]) >= apart):
            ticks.append(position)
    return ticks
