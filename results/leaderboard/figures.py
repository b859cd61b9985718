"""A board's pictures: quality over the ratio, and Pareto fronts of quality against bytes and speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from ..pages.charts import Axis, Point, Series, chart, pareto, staircase
from ..pages.parts import Figure
from ..plots.looks import UNCOMPRESSED
from ..tables.pivot import direction, format_cell, is_fraction, is_perplexity
from .bands import band_name
from .boards import Board, Entry

MOST_SERIES = 18
"""More rows than there are marker shapes would not be distinguished; the best ones are drawn."""

_SIZES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1.0))


def figures(board: Board) -> list[Figure]:
    """Return the pictures of a board, those that have something to show."""
    rows = board.rows()
    drawn = rows[:MOST_SERIES]
    if not any(math.isfinite(entry.cell.value) for _, row in drawn for entry in row.values()):
        return []
    left_out = f" The first {MOST_SERIES} of {len(rows)} rows are drawn." if len(rows) > MOST_SERIES else ""
    drawings = [_curve(board, drawn, left_out)]
    size = max(entry.cell.bytes for _, row in drawn for entry in row.values())
    unit, scale = next((unit, scale) for unit, scale in _SIZES if size >= scale or scale == 1)
    drawings += _front(
        board, drawn, "bytes", Axis(f"weights on disk [{unit}]", scale), lambda entry: entry.cell.bytes or math.nan,
        True, left_out,
    )  # fmt: skip
    for number, condition in enumerate(sorted({name for entry in board.entries for name in entry.speeds})):
        drawings += _front(
            board, drawn, f"speed{number}", Axis("decoding speed [tokens/s]"),
            partial(_speed, condition=condition),
            False, f" Timed as {condition}.{left_out}",
        )  # fmt: skip
    return drawings


def _curve(board: Board, rows: Sequence[tuple[str, Mapping[float, Entry]]], left_out: str) -> Figure:
    references = [(e.label, _scaled(board, e.cell.value)) for e in board.references]
    methods = {row.label: row.method for row in board.table.rows}
    series = [
        Series(label, [_point(board, row[band], row[band].cell.ratio) for band in sorted(row)], method=methods[label])
        for label, row in rows
    ]
    x = Axis("achieved ratio of the whole model", logarithmic=True, ticks=board.bands, suffix="×")
    caption = f"{board.title}: {board.measure} over the achieved ratio, with intervals.{left_out}"
    text = (
        f"{len(series)} lines, one for each row of the table above, over {', '.join(map(band_name, board.bands))}; "
        f"{_direction(board)}."
    )
    return Figure(chart(f"{board.id}-ratio", caption, text, x, _y(board), series, references), caption)


def _front(
    board: Board,
    rows: Sequence[tuple[str, Mapping[float, Entry]]],
    name: str,
    axis: Axis,
    x: Callable[[Entry], float],
    less_x: bool,
    more: str,
) -> list[Figure]:
    named = [(label, row[band]) for label, row in rows for band in sorted(row)]
    named += [(entry.label, entry) for entry in board.references]
    costs = [(label, e, x(e)) for label, e in named if math.isfinite(x(e)) and math.isfinite(e.cell.value)]
    if len(costs) < 2:
        return []
    best = pareto([(cost, -board.goodness(e)) for _, e, cost in costs], less_x, less_y=True)
    groups: dict[str, list[Point]] = {}
    for (label, e, cost), on in zip(costs, best, strict=True):
        ratio = band_name(e.target) if on and not e.uncompressed else ""
        groups.setdefault(label, []).append(_point(board, e, cost, not on, ratio))
    corners = [(cost, _scaled(board, e.cell.value)) for (_, e, cost), on in zip(costs, best, strict=True) if on]
    members = [f"{e.label} {band_name(e.target)}" for (_, e, _), on in zip(costs, best, strict=True) if on]
    caption = (
        f"{board.title}: {board.measure} against {axis.label.partition(' [')[0]}. Filled points and the dashed "
        "line are the Pareto front of the estimates: no other point is as good in both and better in one. Outlines are "
        f"behind it.{more}"
    )
    text = f"On the front: {', '.join(members)}. {_direction(board).capitalize()}."
    methods = {row.label: row.method for row in board.table.rows}
    series = [
        Series(label, points, line=False, method=methods.get(label, UNCOMPRESSED)) for label, points in groups.items()
    ]
    front = staircase(corners, less_x)
    return [Figure(chart(f"{board.id}-{name}", caption, text, axis, _y(board), series, front=front), caption)]


def _speed(entry: Entry, condition: str) -> float:
    return entry.speeds.get(condition, math.nan)


def _point(board: Board, entry: Entry, x: float, hollow: bool = False, label: str = "") -> Point:
    cell = entry.cell
    value, interval = format_cell(board.table.metric, cell)
    text = f"{entry.label} {band_name(entry.target)}: {value} {interval}, achieved {cell.ratio:.3g}×"
    low, high = (_scaled(board, end) for end in (cell.low, cell.high))
    return Point(x, _scaled(board, cell.value), low, high, text, label, hollow)


def _scaled(board: Board, value: float) -> float:
    return 100 * value if is_fraction(board.table.metric) else value


def _y(board: Board) -> Axis:
    logarithmic = None if is_perplexity(board.table.metric) else False
    return Axis(f"{board.measure} · {_direction(board)}", logarithmic=logarithmic)


def _direction(board: Board) -> str:
    return direction(board.table.metric, board.table.higher_is_better)
