"""Tables over any columns: every number in its place, nothing mixed, hostile text harmless."""

import csv
import io

import pandas as pd
import pytest
from rich.console import Console

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.records.files import to_frame
from lowrank_bench.records.intervals import across_seeds
from lowrank_bench.results.tables.cross import Layout, cross, cross_data, cross_tables
from lowrank_bench.results.tables.pivot import pivot
from lowrank_bench.results.tables.terminal import render
from lowrank_bench.results.tables.writers import to_csv, to_latex, to_markdown


def compressed(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["method"] != "none"]


def test_values_are_those_of_pandas(sweep):
    frame = compressed(to_frame(sweep(seeds=(1, 2, 3))))
    for rows, columns in (
        (("label",), ("ratio_target",)),
        (("seed", "label"), ("ratio_target",)),
        (("ratio_target",), ("label",)),
    ):
        (table,) = cross(frame, Layout(rows, columns))
        plain = frame.pivot_table(index=list(rows), columns=list(columns), values="value")
        assert len(table.entries) == plain.size
        for (row, column), entry in table.entries.items():
            assert entry.value == pytest.approx(plain.loc[row if len(row) > 1 else row[0], column[0]])


def test_means_and_intervals_are_the_default_tables(sweep):
    frame = compressed(to_frame(sweep(seeds=(1, 2, 3))))
    (table,), (default,) = cross(frame, Layout()), pivot(frame)
    for row in default.rows:
        for ratio, cell in row.cells.items():
            entry = table.entries[(row.label,), (ratio,)]
            assert (entry.value, entry.low, entry.high, entry.seeds) == (
                cell.value,
                cell.low,
                cell.high,
                len(cell.seeds),
            )
    values = list(frame[(frame["label"] == "svd") & (frame["ratio_target"] == 2)]["value"])
    entry = table.entries[("svd",), (2.0,)]
    assert (entry.low, entry.high) == pytest.approx(across_seeds(values, lower=0, upper=1))


@pytest.mark.parametrize(
    "other",
    [
        *({"variant": "gsm8k-0shot-other"}, {"n": 50}, {"scorer": "strict"}, {"metric": "pass@1"}, {"task": "code"}),
        *({"engine": "vllm"}, {"dtype": "float32"}, {"model_sha256": "other"}, {"prompt_sha256": "other"}),
    ],
)
def test_other_conditions_never_share_a_table(record, other):
    frame = to_frame([record(), record(**other, method="bs", stage_key="b")])
    assert [len(table.rows) for table in cross(frame, Layout())] == [1, 1]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(rows=("seed",)), "would mix 3 values of label"),
        (Layout(columns=("seed",)), "would mix 4 values of ratio_target"),
        (Layout(value="git_commit", rows=("label",)), "several values of git_commit"),
    ],
)
def test_what_would_mix_is_refused(sweep, layout, message):
    frame = compressed(to_frame(sweep(seeds=(1, 2))))
    frame = frame.assign(git_commit=[str(i) for i in range(len(frame))])
    with pytest.raises(UserError, match=message):
        cross(frame, layout)


def test_one_seed_twice_is_refused(record):
    frame = to_frame([record(), record(sweep="again", stage_key="b")])
    with pytest.raises(UserError, match="values of sweep"):
        cross(frame, Layout())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": ("lable",)}, "did you mean 'label'"),
        ({"rows": ("label",), "columns": ("label",)}, "named twice"),
        ({"rows": ()}, "at least one column"),
        ({"value": "label"}, "named twice"),
    ],
)
def test_a_layout_is_checked(arguments, message):
    with pytest.raises(UserError, match=message):
        Layout(**arguments)


def test_other_values_have_no_interval(sweep):
    (table,) = cross(compressed(to_frame(sweep(seeds=(1, 2)))), Layout(value="seconds_recover"))
    assert "3,600 (2)" in to_markdown(cross_tables([table])) or "3600 (2)" in to_markdown(cross_tables([table]))
    (table,) = cross(compressed(to_frame(sweep())), Layout(value="device"))
    assert "| cpu |" in to_markdown(cross_tables([table]))


HOSTILE = "a|b<script>alert(1)</script>&_$x$%#{}~^\\ [red]*"


def test_hostile_text_stays_text_in_every_form(record):
    frame = to_frame([record(label=HOSTILE)])
    tables = cross(frame, Layout())
    assert next(csv.DictReader(io.StringIO(to_csv([cross_data(tables)]))))["label"] == HOSTILE
    assert "<script>" not in to_markdown(cross_tables(tables)).replace("\\<", "")
    assert r"\textless{}script\textgreater{}" in to_latex(cross_tables(tables))
    console = Console(file=io.StringIO(), width=200)
    render(cross_tables(tables), console)
    assert "[red]*" in console.file.getvalue()
    tables = cross(frame.assign(label="=1+1\x1b[31m"), Layout())
    assert next(csv.DictReader(io.StringIO(to_csv([cross_data(tables)]))))["label"].startswith("'=1+1")
    assert "\x1b" not in to_csv([cross_data(tables)]) + to_markdown(cross_tables(tables)) + to_latex(
        cross_tables(tables)
    )
