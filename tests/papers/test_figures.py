"""Figures made again: hollow quoted points in the colour of their line, the same bytes each time, honest means."""

import math
import re
from pathlib import Path

import pytest

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.papers.figures import Heading, draw_figure, mean_table, retained_table
from lowrank_bench.papers.published.quoted import quoted_for
from lowrank_bench.records.files import to_frame
from lowrank_bench.records.intervals import wilson
from lowrank_bench.results.tables.pivot import pivot

LABELS = {"bs": "bs", "svd": "svd", "fwsvd": "fwsvd"}
QUOTED = quoted_for("basis-selection", ["3a"])
BLUE = "#0072b2"
PARAMS = 6_738_415_616


def tables(records):
    return [table for table in pivot(to_frame(records)) if table.compressed]


def svg(paths: list[Path]) -> str:
    assert [path.suffix for path in paths] == [".png", ".svg"]
    assert paths[0].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return paths[1].read_text()


def hollow(text: str, colour: str) -> int:
    return len(re.findall(rf"fill-opacity: 0; stroke: {colour}; stroke-width: 1.6", text))


def test_quoted_points_are_hollow_and_take_their_lines_colour(sweep, tmp_path):
    (table,) = tables(sweep(ratios=(4.0, 7.0)))
    heading = Heading("title", "a caption")
    plain = svg(draw_figure(table, tmp_path / "a", heading))
    with_quoted = svg(draw_figure(table, tmp_path / "b", heading, QUOTED, LABELS))
    assert hollow(plain, BLUE) == 0
    assert hollow(with_quoted, BLUE) >= 1
    foreign = [QUOTED[0].model_copy(update={"method": "llm-pruner"})]
    assert hollow(svg(draw_figure(table, tmp_path / "c", heading, foreign, LABELS)), "#777777") >= 1


def test_equal_records_give_equal_bytes(sweep, tmp_path):
    records = sweep(ratios=(4.0, 7.0))
    drawn = [
        svg(draw_figure(tables(order)[0], tmp_path / name, Heading("t", "c", "y"), QUOTED, LABELS))
        for name, order in (("a", records), ("b", records[::-1]))
    ]
    assert drawn[0] == drawn[1]


def test_hostile_words_are_drawn_as_text(sweep, tmp_path):
    (table,) = tables(sweep(methods=("svd",)))
    svg(draw_figure(table, tmp_path / "a", Heading("_$x^{2$ \x1b[2J", "_hidden $ \x00", "$y_")))


def test_nothing_compressed_is_a_sentence(sweep, tmp_path):
    only = [r for r in sweep() if r.stage == "finetuned"]
    with pytest.raises(UserError, match="no compressed model"):
        draw_figure(pivot(to_frame(only))[0], tmp_path / "a", Heading("t"))


def two_benchmarks(sweep):
    again = [
        r.model_copy(update={"benchmark": "math", "variant": "math", "stage_key": r.stage_key + "b"}) for r in sweep()
    ]
    return tables([*sweep(), *again])


def test_the_mean_of_equal_benchmarks_is_their_value_with_a_narrower_interval(sweep):
    first, second = two_benchmarks(sweep)
    mean = mean_table([first, second], "both")
    assert mean.n == 2 * first.n
    for row, first_row in zip(mean.rows, first.rows, strict=True):
        for ratio, cell in row.cells.items():
            assert cell.value == pytest.approx(first_row.cells[ratio].value)
            wide = first_row.cells[ratio].high - first_row.cells[ratio].low
            assert cell.high - cell.low == pytest.approx(wide / math.sqrt(2), rel=1e-9)


def test_a_cell_that_one_benchmark_lacks_is_no_mean(sweep):
    first, _ = two_benchmarks(sweep)
    less = tables([r for r in sweep() if r.ratio_target != 3.0])[0]
    assert 3.0 in first.ratios
    assert 3.0 not in mean_table([first, less], "both").ratios


@pytest.mark.parametrize("solved", [1, 13, 400, 1319])
def test_what_is_retained_is_the_quotient(record, solved):
    base = {"method": "none", "label": "none", "stage": "finetuned", "ratio_target": 1.0, "params": PARAMS}
    low, high = wilson(solved, 1319)
    dense = record(**base, ratio_matrices=1.0, stage_key="a", value=solved / 1319, low=low, high=high)
    table = retained_table(tables([dense, record(stage_key="b")])[0])
    cells = {row.label: next(iter(row.cells.values())) for row in table.rows}
    whole, small = cells["uncompressed (finetuned)"], cells["svd"]
    assert (whole.value, whole.low, whole.high) == (1.0, 1.0, 1.0)
    assert small.value == pytest.approx(0.4 * 1319 / solved)
    assert 0 <= small.low < small.value < small.high


def test_nothing_is_retained_of_nothing(sweep):
    none = [r.model_copy(update={"value": 0.0, "low": 0.0, "high": 0.01}) for r in sweep()]
    with pytest.raises(UserError, match="solves nothing"):
        retained_table(tables(none)[0])
