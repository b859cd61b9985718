"""Charts: everything inside the frame, fronts as defined, distinguishable without colour."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lowrank_bench.methods.base import methods
from lowrank_bench.models.quantised.scheme import CONTROLS
from lowrank_bench.results.pages.charts import Axis, Point, Series, chart, pareto, staircase
from lowrank_bench.results.plots.looks import COLOURS, MARKERS, looks

SVG = "{http://www.w3.org/2000/svg}"
NUMBERS = st.floats(-1e12, 1e12, allow_nan=False)
POINTS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12)


def draw(series, **options):
    return str(chart("c", "title", "description", Axis("x"), Axis("y"), series, **options))


@settings(deadline=None, max_examples=25)
@example([[(0.0, 1.0)]], [2.225073858507e-311])
@example([[(1e-100, 9e99), (9e99, 1e-100)]], [])
@example([[(5e-324, 5e-324), (1e-323, 1.0)]], [])
@given(st.lists(POINTS, min_size=1, max_size=4), st.lists(NUMBERS, max_size=2))
def test_every_chart_is_well_formed_and_inside_its_frame(groups, levels):
    series = [
        Series(f"s{i}", [Point(x, y, y - abs(y), math.inf) for x, y in points]) for i, points in enumerate(groups)
    ]
    svg = draw(series, references=[("level", value) for value in levels])
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    _, _, width, height = map(float, root.get("viewBox").split())
    for point in root.iter(f"{SVG}use"):
        assert -1 <= float(point.get("x")) <= width + 1
        assert -1 <= float(point.get("y")) <= height + 1
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

    for point, on_front in zip(points, on, strict=True):
        assert on_front == (not any(beats(other, point) for other in points))


def test_a_staircase_promises_no_more_than_its_points():
    front = [(3.0, 30.0), (1.0, 10.0), (2.0, 20.0)]  # few bytes, little quality
    assert staircase(front, less_x=True) == [(1, 10), (2, 10), (2, 20), (3, 20), (3, 30)]
    speeds = [(1.0, 30.0), (2.0, 20.0)]  # faster, less quality
    assert staircase(speeds, less_x=False) == [(1, 30), (1, 20), (2, 20)]


def luminance(colour):
    """Relative luminance of ``#rrggbb`` (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", COLOURS)
def test_every_colour_has_three_to_one_on_white(colour):
    assert 1.05 / (luminance(colour) + 0.05) >= 3


NAMES = st.sampled_from(["svd", "fwsvd", "bs", "svd-llm", "random", "mine", "another"]) | st.text("abc-", min_size=1)


@given(st.lists(NAMES, min_size=1, max_size=2 * len(MARKERS), unique=True))
def test_methods_differ_by_marker_and_dash_alone(methods):
    chosen = looks(methods)
    assert len({(repr(look.marker), repr(look.dashes)) for look in chosen}) == len(methods)


@given(st.lists(NAMES, min_size=1, max_size=8))
def test_a_built_in_method_looks_the_same_whatever_is_drawn_beside_it(others):
    alone = looks(["fwsvd"])[0]
    assert looks([*others, "fwsvd"])[-1].colour == alone.colour
    assert looks([*(name for name in others if name != "fwsvd"), "fwsvd"])[-1] == alone


def test_built_in_methods_of_one_colour_differ_in_the_dash():
    names = [*methods.names(), *CONTROLS]
    chosen = looks(names)
    assert len({(look.colour, repr(look.dashes)) for look in chosen}) == len(names)
    assert [looks([name])[0] for name in names] == chosen


def test_variants_of_a_method_share_its_colour_and_differ_in_marker_and_dash():
    plain, other, third = looks(["bs", "bs", "bs"])
    assert plain.colour == other.colour == third.colour
    assert len({repr(look.marker) for look in (plain, other, third)}) == 3
    assert len({repr(look.dashes) for look in (plain, other, third)}) == 3


def test_text_is_text_and_points_have_tips():
    svg = draw([Series("svd", [Point(1, 2, text="svd at 2×: 84.0"), Point(2, 1)])], references=[("uncompressed", 3.0)])
    root = ElementTree.fromstring(svg)
    assert {"svd", "uncompressed"} <= {"".join(text.itertext()).strip() for text in root.iter(f"{SVG}text")}
    assert [tip.text for tip in root.iter(f"{SVG}title") if tip.text] == ["svd at 2×: 84.0"]
    assert "var(--c0)" in svg


def test_names_stay_text():
    svg = draw([Series("<script>alert(1)</script>", [Point(1, 2, text='"><img src=x>')])])
    assert "<script" not in svg
    assert "<img" not in svg
    ElementTree.fromstring(svg)


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="finite"):
        draw([Series("s", [Point(math.nan, 1), Point(1, math.inf)])])
