"""Charts: everything inside the frame, fronts as defined, told apart without colour."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lowrank_bench.results.pages.charts import (
    HEIGHT,
    MARKERS,
    WIDTH,
    Axis,
    Point,
    Series,
    chart,
    pareto,
    staircase,
)

NUMBERS = st.floats(-1e12, 1e12, allow_nan=False)
POINTS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12)


def draw(series, **options):
    return str(chart("c", "title", "description", Axis("x"), Axis("y"), series, **options))


@settings(deadline=None)
@example([[(0.0, 1.0)]], [2.225073858507e-311])
@example([[(1e-300, 9e299), (9e299, 1e-300)]], [])
@example([[(5e-324, 5e-324), (1e-323, 1.0)]], [])
@given(st.lists(POINTS, min_size=1, max_size=4), st.lists(NUMBERS, max_size=2))
def test_every_chart_is_well_formed_and_inside_its_frame(groups, levels):
    series = [
        Series(f"s{i}", [Point(x, y, y - abs(y), math.inf) for x, y in points]) for i, points in enumerate(groups)
    ]
    svg = draw(series, references=[("level", value) for value in levels])
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    for element in root.iter():
        for name, largest in (("x", WIDTH), ("y", HEIGHT)):
            if element.get(name) is not None:
                assert -20 <= float(element.get(name)) <= largest + 20
    assert not re.search(r"\b(nan|inf)\b", svg)
    assert svg == draw(series, references=[("level", value) for value in levels])


@settings(deadline=None)
@given(POINTS, st.booleans(), st.booleans())
def test_the_front_is_what_no_point_beats(points, less_x, less_y):
    on = pareto(points, less_x, less_y)
    assert any(on)

    def beats(p, q):
        as_good = (p[0] <= q[0] if less_x else p[0] >= q[0]) and (p[1] <= q[1] if less_y else p[1] >= q[1])
        return as_good and p != q

    for point, kept in zip(points, on, strict=True):
        assert kept == (not any(beats(other, point) for other in points))


def test_a_staircase_promises_no_more_than_its_points():
    front = [(3.0, 30.0), (1.0, 10.0), (2.0, 20.0)]  # few bytes, little quality
    assert staircase(front, less_x=True) == [(1, 10), (2, 10), (2, 20), (3, 20), (3, 30)]
    speeds = [(1.0, 30.0), (2.0, 20.0)]  # faster, less quality
    assert staircase(speeds, less_x=False) == [(1, 30), (1, 20), (2, 20)]


def test_series_differ_by_shape_or_dash_alone():
    many = [Series(f"s{i}", [Point(0, i), Point(1, i)]) for i in range(3 * len(MARKERS))]
    svg = ElementTree.fromstring(draw(many))
    looks = set()
    for group in svg.iter("g"):
        line, marker = group.find("polyline"), group.find("use")
        looks.add((line.get("stroke-dasharray"), marker.get("href")))
    assert len(looks) == len(many)


def test_names_stay_text():
    svg = draw([Series("<script>alert(1)</script>", [Point(1, 2, text='"><img src=x>')])])
    assert "<script" not in svg
    assert "<img" not in svg
    ElementTree.fromstring(svg)


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="finite"):
        draw([Series("s", [Point(math.nan, 1), Point(1, math.inf)])])
