"""Pivots put like beside like; all four forms carry the numbers and defuse hostile text."""

import csv
import io
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.foundation.text import fold_name
from lowrank_bench.records.files import to_frame
from lowrank_bench.records.intervals import across_seeds
from lowrank_bench.records.metrics import is_fraction, limits
from lowrank_bench.results.tables import writers
from lowrank_bench.results.tables.by_ratio import by_ratio, by_ratio_data
from lowrank_bench.results.tables.overview import overviews
from lowrank_bench.results.tables.pivot import pivot
from lowrank_bench.results.tables.table import Table, text_columns
from lowrank_bench.results.tables.terminal import render

RATIOS = (1.5, 2.0, 3.0, 5.0)


def shown(frame, width=100):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    render(by_ratio(frame, exact=width >= 100), console)
    return console.file.getvalue()


def to_csv(frame):
    return writers.to_csv([by_ratio_data(frame)])


def to_markdown(frame):
    return writers.to_markdown(by_ratio(frame))


def to_latex(frame):
    return writers.to_latex(by_ratio(frame))


def test_pivot_puts_every_record_in_its_place(sweep):
    records = sweep()
    main, few_shot = pivot(to_frame(records))
    assert main.ratios == (1.0, *RATIOS)
    assert [row.label for row in main.rows] == ["uncompressed (finetuned)", "bs", "fwsvd", "svd"]
    assert [row.label for row in few_shot.rows] == ["uncompressed (pretrained)"]
    rows = {row.label: row for row in main.rows}
    for record in records:
        if record.method != "none":
            cell = rows[record.label].cells[record.ratio_target]
            assert (cell.value, cell.low, cell.high, cell.seeds) == (record.value, record.low, record.high, (42,))
            assert (cell.ratio, cell.params, cell.bytes) == (record.ratio, record.params, record.bytes)
            assert cell.tokens == record.tokens_compress + record.tokens_recover


def test_several_seeds_become_a_mean_with_the_interval_across_them(sweep):
    records = sweep(seeds=(1, 2, 3))
    (table, _) = pivot(to_frame(records))
    cell = next(row for row in table.rows if row.label == "svd").cells[2.0]
    values = [r.value for r in records if r.label == "svd" and r.ratio_target == 2.0]
    assert cell.seeds == (1, 2, 3)
    assert cell.value == pytest.approx(sum(values) / 3)
    assert (cell.low, cell.high) == pytest.approx(across_seeds(values, lower=0, upper=1))
    assert "(3)" in shown(to_frame(records))


def test_seeds_that_agree_keep_the_interval_over_problems(sweep):
    records = sweep(seeds=(1, 2))
    (table, _) = pivot(to_frame(records))
    same = next(r for r in records if r.stage == "finetuned")
    cell = table.rows[0].cells[1.0]
    assert (cell.low, cell.high) == (same.low, same.high)
    assert not cell.across_seeds


@pytest.mark.parametrize(
    "other",
    [
        *({"variant": "gsm8k-0shot-other"}, {"n": 50}, {"scorer": "strict"}, {"metric": "pass@1"}, {"task": "code"}),
        *({"engine": "vllm"}, {"dtype": "float32"}, {"model_sha256": "other"}, {"prompt_sha256": "other"}),
    ],
)
def test_other_conditions_never_share_a_table(record, other):
    tables = pivot(to_frame([record(), record(**other, method="bs", stage_key="b")]))
    assert [len(table.rows) for table in tables] == [1, 1]


def test_one_evaluate_stage_may_hold_several_benchmarks(record):
    tables = pivot(to_frame([record(), record(benchmark="math", variant="math-0shot-alpaca")]))
    assert [table.benchmark for table in tables] == ["gsm8k", "math"]


def test_data_generated_from_the_seed_is_one_condition(record):
    frame = to_frame([record(seed=s, dataset_sha256=f"data{s}", stage_key=f"{s}", value=0.4 + s / 100) for s in (1, 2)])
    (table,) = pivot(frame)
    assert table.rows[0].cells[2.0].seeds == (1, 2)


def test_rows_that_a_label_would_merge_are_kept_apart(record):
    options = [record(), record(options='{"axis":"out"}', ratio_target=3.0, stage_key="b")]
    (table,) = pivot(to_frame(options))
    assert {row.label for row in table.rows} == {"svd (default options)", "svd (axis=out)"}
    (table,) = pivot(to_frame([record(), record(sweep="again", stage_key="b")]))
    assert {row.label for row in table.rows} == {"svd (demo)", "svd (again)"}
    (table,) = pivot(to_frame([record(), record(stage="compressed", stage_key="b")]))
    assert {row.label for row in table.rows} == {"svd", "svd, not recovered"}
    (table,) = pivot(to_frame([record(), record(sweep="a sweep that shares the stage")]))
    assert [row.label for row in table.rows] == ["svd"]


def test_other_finetuning_is_no_other_seed(record):
    short = record(seed=1, steps_finetune=60, value=0.2, low=0.1, high=0.3, sweep="one", stage_key="a")
    long = record(seed=2, steps_finetune=600, value=0.8, low=0.7, high=0.9, sweep="two", stage_key="b")
    (table,) = pivot(to_frame([short, long]))
    assert {row.label: row.cells[2.0].value for row in table.rows} == {
        "svd (finetuned 60 steps)": 0.2,
        "svd (finetuned 600 steps)": 0.8,
    }
    (table,) = pivot(to_frame([short, long.model_copy(update={"steps_finetune": 60})]))
    assert [row.label for row in table.rows] == ["svd"]


def test_an_overview_has_one_training_budget(record):
    names = ("arc_easy", "piqa", "boolq")
    rows = [
        record(benchmark=name, variant=name, metric="acc", scorer="", steps_recover=steps, value=value, low=0, high=1)
        .model_copy(update={"steps_budget": steps, "stage_key": f"{name}-{steps}"})
        for name in names
        for steps, value in ((200, 0.4), (600, 0.7))
    ]  # fmt: skip
    tables = overviews(to_frame(rows))
    assert [table.title.rpartition(", ")[2] for table in tables] == [
        "200 steps after the first finetuning)",
        "600 steps after the first finetuning)",
    ]
    assert [[row[-1] for row in table.rows][-1] for table in tables] == ["40.0", "70.0"]
    assert all(row[0] != "mean of the 6 accuracies above, %" for table in tables for row in table.rows)


@pytest.mark.parametrize("metric", ["accuracy-pass@5", "no_answer", "timeout", "prompt_too_long"])
def test_every_share_has_its_limits_and_is_in_percent(metric):
    assert is_fraction(metric)
    assert limits(metric) == (0.0, 1.0)


def test_only_options_that_differ_tell_rows_apart(record):
    options = ('{"a":1,"b":2,"c":3}', '{"a":1,"b":5,"c":3}')
    (table,) = pivot(to_frame([record(options=text, stage_key=f"evaluate-{i}") for i, text in enumerate(options)]))
    assert [row.label for row in table.rows] == ["svd (b=2)", "svd (b=5)"]


def test_a_rerun_with_another_value_does_not_vanish(record):
    """The same stage, so the same key, measured twice with different results in two sweeps: both are shown."""
    rows = [record(sweep="one", value=0.4, low=0.3, high=0.6), record(sweep="two", value=0.5, low=0.3, high=0.6)]
    (table,) = pivot(to_frame(rows))
    assert sorted(cell.value for row in table.rows for cell in row.cells.values()) == [0.4, 0.5]
    (table,) = pivot(to_frame([rows[0], record(sweep="two", value=0.4, low=0.3, high=0.6)]))
    assert len(table.rows) == 1


def test_contradictions_and_emptiness_are_errors(record):
    with pytest.raises(UserError, match="two records give accuracy of 'svd"):
        pivot(to_frame([record(), record(value=0.39, stage_key="b", device="gpu")]))
    with pytest.raises(UserError, match="no records"):
        pivot(to_frame([record(headline=False)]))
    assert pivot(to_frame([record(headline=False)]), headline=False)


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("language", [False, True])
def test_the_terminal_shows_every_number_within_its_width(sweep, width, language):
    records = sweep(ratios=(1.25, *RATIOS, 10.0), language=language)
    text = shown(to_frame(records), width)
    assert max(map(len, text.splitlines())) <= width
    numbers = [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\.?\d*(?=[\s\],])", text)]
    for record in records:
        for value in (record.value, record.low, record.high):
            shown_value = value if language else 100 * value
            assert any(
                math.isclose(number, shown_value, rel_tol=6e-4, abs_tol=0.051 * (not language)) for number in numbers
            )
    assert ("19,660,800" if width >= 100 else "19.66 M") in text
    assert ("6,738,415,616" if width >= 100 else "6.738 B") in text
    assert "…" not in text


def test_three_ratios_fit_on_one_line_each(sweep):
    assert re.search(r"^svd +\d+\.\d \[\d+\.\d, \d+\.\d\]", shown(to_frame(sweep(ratios=(2.0, 3.0)))), re.MULTILINE)


def test_unbounded_intervals_are_shown_as_such(record):
    frame = to_frame([record(metric="perplexity", value=5.0, low=0.0, high=math.inf)])
    assert "[0.000, ∞]" in shown(frame)


HOSTILE = "a|b`<b>&_$x$%#{}~^\\ [red]*"


def test_hostile_text_stays_text(record):
    frame = to_frame([record(label=HOSTILE)])
    assert "[red]*" in re.sub(r"\s", "", shown(frame))
    line = next(line for line in to_markdown(frame).splitlines() if line.startswith("| a"))
    assert len(re.findall(r"(?<!\\)\|", line)) == 3
    assert r"\<b\>&amp;" in line
    latex = next(line for line in to_latex(frame).splitlines() if line.startswith("a"))
    assert latex.startswith(r"a|b`\textless{}b\textgreater{}\&\_\$x\$\%\#\{\}\textasciitilde{}\textasciicircum{}")
    assert next(csv.DictReader(io.StringIO(to_csv(frame))))["label"] == HOSTILE


@pytest.mark.parametrize("formula", ["=1+1", "+1", "-1", "@SUM(A1)", " =1"])
def test_formulas_and_control_characters_of_foreign_frames_are_defused(record, formula):
    frame = to_frame([record()])
    row = next(csv.DictReader(io.StringIO(to_csv(frame.assign(label=formula)))))
    assert row["label"] == f"'{formula}"
    assert float(row["2x"]) == 0.4
    nasty = frame.assign(label="svd\x1b[31m\nnext")
    assert not any("\x1b" in text for text in (shown(nasty), to_csv(nasty), to_markdown(nasty), to_latex(nasty)))


def test_latex_and_markdown_carry_the_cells(record):
    frame = to_frame([record()])
    assert r"svd & 40.0 [37.5, 42.6] \\" in to_latex(frame)
    assert r"\toprule" in to_latex(frame)
    assert r"| svd | 40.0 \[37.5, 42.6\] |" in to_markdown(frame)


def test_a_latex_row_may_begin_with_a_bracket(record):
    assert "\n{}[x] &" in to_latex(to_frame([record(label="[x]")]))


def test_ten_thousand_records_keep_their_lines(sweep):
    frame = to_frame([r for task in range(80) for r in sweep(seeds=tuple(range(9)), task=f"t{task}")])
    assert len(frame) > 10_000
    lines = to_csv(frame).splitlines()
    assert len(lines) == 1 + 80 * 5


def test_labels_are_broken_behind_their_punctuation(record):
    label = "svd-llm:length=512,samples=16"
    frame = to_frame([record(label="none", method="none", stage="finetuned", ratio_target=1.0), record(label=label)])
    for width in (80, 120):
        text = shown(frame, width)
        for word in ("svd", "length=", "512", "samples=", "16"):
            assert word in text


@given(st.text(alphabet="abc:,=-_/ ", min_size=1, max_size=60), st.integers(4, 20))
def test_a_folded_name_keeps_its_characters_and_width(name, width):
    folded = fold_name(name, width)
    assert "".join(folded.split()) == "".join(name.split())
    assert all(len(line) <= width for line in folded.split("\n")) or not name.strip()


@pytest.mark.parametrize("width", [30, 40, 45, 52, 60, 80, 100])
def test_no_column_of_texts_is_cut_or_left_out(width: int) -> None:
    """Names that are kept whole leave the other columns their share, on any terminal."""
    cells = ("aaaaaaaaaaaaa", "bbbbbbbb bbbb", "ccccccccc", "dd", "eee eeeeee", "ffffffff", "gggggggg")
    console = Console(file=(out := io.StringIO()), width=width)
    render([Table("", text_columns(*"1234567"), [cells])], console)
    printed = out.getvalue()
    assert max(map(len, printed.splitlines())) <= width
    assert {letter: printed.count(letter) for letter in "abcdefg"} == {cell[0]: cell.count(cell[0]) for cell in cells}
