"""Recovery by hand calculation; every verdict by a frame that deserves it; errors by their properties."""

import math
import random

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from junitparser import JUnitXml
from rich.console import Console

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.records.files import to_frame, write_records
from lowrank_bench.records.intervals import perplexity_interval, wilson
from lowrank_bench.results.regression.baseline import read_baseline, update_baseline
from lowrank_bench.results.regression.compare import Tolerance, check_run
from lowrank_bench.results.regression.junit import junit_xml
from lowrank_bench.results.regression.recovery import estimates, gain
from lowrank_bench.results.regression.show import print_check

PARAMS = 6_738_415_616
BASE = {"method": "none", "label": "none", "stage": "finetuned", "ratio_target": 1.0, "params": PARAMS}


def share(solved, n=1000):
    low, high = wilson(solved, n)
    return {"value": solved / n, "low": low, "high": high, "n": n}


@pytest.fixture
def side(record):
    """Build one side: solved of 1000 by label, for each seed."""

    def build(solved, seeds=(1, 2, 3), whole=900, **changes):
        records = []
        for index, seed in enumerate(seeds):
            common = {"seed": seed, **changes}
            records.append(record(**{**BASE, **share(whole), **common, "stage_key": f"u{seed}"}))
            for label, counts in solved.items():
                count = counts[index] if isinstance(counts, tuple) else counts
                extra = {"method": label, "label": label, "stage_key": f"{label}{seed}"}
                records.append(record(**{**extra, **share(count), **common}))
        return to_frame(records)

    return build


def only(check, label):
    return next(cell for cell in check.cells if cell.name.label == label)


def test_recovery_is_compressed_over_uncompressed_of_the_same_seed(side, record):
    by_label = {name.label: estimate for name, estimate in estimates(side({"svd": (450, 540, 630)})).items()}
    assert by_label["svd"].values == pytest.approx((0.5, 0.6, 0.7))
    assert by_label["uncompressed"].values == pytest.approx((0.9,) * 3)
    lower = {"metric": "perplexity", "scorer": "", "higher_is_better": False}
    frame = to_frame(
        [
            record(**{**BASE, **lower, "value": 5.0, "low": 4.0, "high": 6.25}),
            record(**{**lower, "value": 20.0, "low": 10.0, "high": 40.0, "stage_key": "b"}),
        ]
    )
    (svd,) = (estimate for name, estimate in estimates(frame).items() if not name.uncompressed)
    assert svd.values == (0.25,)
    logs = math.hypot(math.log(2), math.log(1.25)) / 1.959964
    assert svd.errors[0] == pytest.approx(0.25 * logs, rel=1e-6)


@settings(deadline=None)
@given(st.integers(50, 950))
def test_standard_errors_of_shares_are_those_of_a_binomial(solved):
    value, error = gain({**share(solved), "confidence": 0.95, "higher_is_better": True})
    assert value == solved / 1000
    assert error == pytest.approx(math.sqrt(value * (1 - value) / 1000), rel=0.02)


def test_standard_error_of_a_perplexity_is_that_of_its_logarithm():
    random.seed(1)
    sums = [random.gauss(2.0, 0.3) * 100 for _ in range(400)]
    perplexity = math.exp(sum(sums) / 40_000)
    low, high = perplexity_interval(sums, [100] * 400)
    row = {"value": perplexity, "low": low, "high": high, "confidence": 0.95, "higher_is_better": False}
    value, error = gain(row)
    assert value == pytest.approx(1 / perplexity)
    assert error * perplexity == pytest.approx(0.3 / 20, rel=0.1)


@pytest.mark.parametrize("ends", [(0.2, math.inf), (-math.inf, 0.6)])
def test_an_end_that_bounds_nothing_leaves_the_other(ends):
    row = {"value": 0.4, "low": ends[0], "high": ends[1], "confidence": 0.95, "higher_is_better": True}
    assert gain(row)[1] == pytest.approx(0.2 / 1.959964)


def test_a_fall_is_reported_with_numbers(side):
    check = check_run(
        side({"svd": 400, "bs": 720}, (4,)), side({"svd": (700, 710, 690), "bs": (700, 720, 740)}), Tolerance()
    )
    assert [cell.name.label for cell in check.failed] == ["svd"]
    cell = only(check, "svd")
    assert (cell.verdict, cell.before, cell.after) == ("fell", pytest.approx(7 / 9), pytest.approx(4 / 9))
    (sentence,), notes = check.sentences()
    for part in (
        "svd 2× on llama2-7b",
        "from 77.8 % to 44.4 %",
        "33.3 points",
        f"{abs(cell.sigmas):.1f} standard errors",
    ):
        assert part in sentence
    assert notes == []


def test_a_rise_passes_and_is_reported(side):
    check = check_run(side({"svd": 890}, (4,)), side({"svd": (600, 610, 605)}), Tolerance())
    assert not check.failed
    assert only(check, "svd").verdict == "rose"
    assert "recovery rose" in check.sentences()[1][0]


def test_a_significant_but_tiny_fall_is_no_alarm(side):
    base, run = side({"svd": (800, 800, 800)}), side({"svd": 790}, (4,))
    base[["low", "high"]] = run[["low", "high"]] = 0.0
    base["low"] = base["high"] = base["value"]
    run["low"] = run["high"] = run["value"]
    assert not check_run(run, base, Tolerance()).failed
    assert check_run(run, base, Tolerance(min_drop=0.01)).failed


def test_seeds_that_differ_widen_the_tolerance(side):
    run = side({"svd": 400}, (4,))
    assert check_run(run, side({"svd": (700, 705, 695)}), Tolerance()).failed
    assert not check_run(run, side({"svd": (600, 800, 700)}), Tolerance()).failed


def test_a_damaged_finetuning_does_not_hide_behind_recovery(side):
    check = check_run(side({"svd": 400}, (4,), whole=500), side({"svd": 700}), Tolerance())
    assert "uncompressed" in {cell.name.label for cell in check.failed}


def test_more_cells_ask_for_more_standard_errors(side):
    labels = {f"m{i}": (700, 720, 680) for i in range(40)}
    few, many = (
        check_run(side(dict.fromkeys(chosen, 700), (4,)), side(chosen), Tolerance())
        for chosen in ({"m0": (700, 720, 680)}, labels)
    )
    assert only(many, "m0").threshold > 3
    alone = check_run(side({"m0": 700}, (4,)), side({"m0": 700}, (1,)), Tolerance())
    assert only(alone, "m0").threshold == 3.0
    assert not few.notes
    assert "neither side has two seeds" in alone.notes[0]


def test_a_method_that_cheats_its_ratio_fails(side):
    base = side({"svd": 700})
    check = check_run(
        side({"svd": 700}, (4,), params=PARAMS * 52 // 100),
        base,
        Tolerance(),
    )
    fault = next(text for cell in check.failed if cell.name.label == "svd" for text in cell.faults)
    assert "achieved ratio fell from 2.000× to 1.923×" in fault
    heavier = side({"svd": 700}, (4,))
    heavier.loc[heavier["label"] == "svd", "bytes"] *= 2
    assert "weights grew" in only(check_run(heavier, base, Tolerance()), "svd").faults[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "vllm"}, "engine is transformers in the baseline, vllm in the run"),
        ({"dtype": "float32"}, "dtype is bfloat16"),
        ({"model_sha256": "ff" * 32}, "model_sha256 is ab"),
        ({"steps_recover": 10}, "steps after the first finetuning is 600 in the baseline, 10 in the run"),
        ({"options": '{"axis":"in"}'}, "option axis is 'out' in the baseline, 'in' in the run"),
        ({"dataset_sha256": "ee" * 32}, "the problems of seed 1 are others"),
    ],
)
def test_other_conditions_are_not_compared(side, changes, message):
    base = side({"svd": 700}, options='{"axis":"out"}')
    check = check_run(side({"svd": 700}, (1,), **{"options": '{"axis":"out"}'} | changes), base, Tolerance())
    assert {cell.verdict for cell in check.failed} >= {"other conditions"}
    assert message in " ".join(check.sentences()[0])


def test_a_new_option_is_no_other_condition(side):
    check = check_run(
        side({"svd": 700}, options='{"axis":"out","new":1}'), side({"svd": 700}, options='{"axis":"out"}'), Tolerance()
    )
    assert not check.failed
    assert "options that only one side has: new" in check.sentences()[1][0]


def test_missing_fails_and_new_is_reported(side):
    check = check_run(side({"svd": 700}, (4,)), side({"svd": 700, "bs": 700}), Tolerance())
    assert [cell.verdict for cell in check.failed] == ["missing"]
    check = check_run(side({"svd": 700, "bs": 700}, (4,)), side({"svd": 700}), Tolerance())
    assert not check.failed
    assert only(check, "bs").verdict == "new"


def test_nothing_in_common_and_nothing_to_recover(side):
    with pytest.raises(UserError, match="no cell in common"):
        check_run(side({"svd": 700}, task="code"), side({"svd": 700}), Tolerance())
    check = check_run(side({"svd": 700}, (4,), whole=0), side({"svd": 700}), Tolerance())
    assert "no recovery; in the run the uncompressed model scores nothing" in only(check, "svd").faults[0]


@pytest.mark.parametrize("changed", [{"whole": 0}, {"whole": 0, "higher_is_better": False}])
def test_a_measure_that_is_zero_in_the_uncompressed_model_is_named_not_divided_by(side, changed):
    """As `bench baseline update --all-metrics` keeps them of an honest run, where nothing was cut off or too long."""

    def both(solved):
        other = side({"svd": solved}, variant="other-0shot", **changed)
        return pd.concat([side({"svd": 700}), other], ignore_index=True)

    for solved in (0, 5):
        check = check_run(both(solved), both(0), Tolerance())
        assert not check.failed
        zero = [cell for cell in check.cells if cell.name.variant == "other-0shot"]
        assert [cell.verdict for cell in zero] == ["undefined", "undefined"]
        assert all("not checked" in note for cell in zero for note in cell.notes)
        assert only(check, "svd").verdict == "same"
        assert JUnitXml.fromstring(junit_xml(check, "zero").encode())
        print_check(check, Console(record=True))


def test_biases_have_no_recovery(side):
    assert not estimates(side({"svd": 500}, metric="pct_stereotype"))


def test_junit_is_read_back_with_hostile_names(side):
    names = {"a<b>&\"'": 100, "\ufffe\uffff ]]> ": 700, "x": 700}
    base = side({**dict.fromkeys(names, (700, 710, 690)), "gone": 700})
    check = check_run(side({**names, "new": 700}, (4,)), base, Tolerance())
    text = junit_xml(check, "run\x00<&>")
    assert text == junit_xml(check, "run\x00<&>")
    assert "nan" not in text, "a cell that is missing has no number now"
    parsed = JUnitXml.fromstring(text.encode())
    (suite,) = parsed
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (6, 2, 0, 1)
    failed = {case.name: case.result[0] for case in suite if case.result and case.result[0]._tag == "failure"}
    assert set(failed) == {"a<b>&\"' 2×", "gone 2×"}
    assert "recovery fell" in failed["a<b>&\"' 2×"].message


def test_a_baseline_is_records_with_equal_bytes(tmp_path, side):
    path, frame = tmp_path / "sub" / "baseline.csv", side({"svd": (700, 710, 690)})
    assert all(change.startswith("added") for change in update_baseline(frame, path).changes)
    first = path.read_bytes()
    later = frame.assign(seconds_fit=9.0, evaluated_at="2027-01-31T12:00:00+00:00", sweep="again", git_commit="1" * 40)
    assert update_baseline(later, path).changes == ()
    assert path.read_bytes() == first
    moved = side({"svd": (700, 710, 500), "bs": 800})
    assert [change.split()[0] for change in update_baseline(moved, path).changes] == ["changed", "added"]
    assert len(read_baseline(path)) == len(moved)
    assert [change.split()[0] for change in update_baseline(frame, path).changes] == ["dropped", "changed"]


def test_an_update_replaces_its_own_task_and_leaves_others(tmp_path, side):
    path = tmp_path / "baseline.csv"
    update_baseline(side({"svd": 700}), path)
    update_baseline(side({"svd": 500}, task="code"), path)
    assert set(read_baseline(path)["task"]) == {"math", "code"}
    update_baseline(side({"bs": 500}, task="code"), path)
    frame = read_baseline(path)
    assert set(frame[frame["task"] == "code"]["label"]) == {"none", "bs"}
    assert set(frame[frame["task"] == "math"]["label"]) == {"none", "svd"}


def test_a_baseline_that_cannot_be_used_is_refused(tmp_path, side, record):
    with pytest.raises(UserError, match="does not exist; make it with"):
        read_baseline(tmp_path / "none.csv")
    csv, _ = write_records(tmp_path, [record(**BASE)])
    with pytest.raises(UserError, match="no compressed model"):
        read_baseline(csv)
    # A run's own results are no baseline to write to, whatever they hold.
    other = tmp_path / "baseline.csv"
    other.write_text(csv.read_text().replace("0.4,", "nan,"))
    for path, sentence in (
        (other, "record 1 is not valid"),
        (csv, "holds the results of a run and would be overwritten"),
    ):
        before = path.read_bytes()
        with pytest.raises(UserError, match=sentence):
            update_baseline(side({"svd": 700}), path)
        assert path.read_bytes() == before


@pytest.mark.parametrize("empty", ["run", "baseline"])
def test_a_side_without_records_is_named(side, empty):
    frames = {"run": side({"svd": 700}), "baseline": side({"svd": 700})} | {empty: to_frame([])}
    with pytest.raises(UserError, match=f"the {empty} has no records; name a run"):
        check_run(frames["run"], frames["baseline"], Tolerance())


def test_two_records_of_a_cell_and_seed_are_refused(record):
    frame = to_frame([record(), record(sweep="again", value=0.39, stage_key="other")])
    with pytest.raises(UserError, match="two records give accuracy of svd 2×"):
        estimates(frame)
