"""Sentences of a report follow from its numbers."""

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_records import PARAMS

from lowrank_bench.foundation.files import canonical_json
from lowrank_bench.records.files import to_frame, write_records
from lowrank_bench.results.leaderboard.ranking import Scores
from lowrank_bench.results.report.data import Asked, Paired, Report
from lowrank_bench.results.report.document import _table
from lowrank_bench.results.report.findings import findings
from lowrank_bench.results.report.gather import gather
from lowrank_bench.results.report.markdown import fenced, report_markdown
from lowrank_bench.results.report.paired import paired_tests
from lowrank_bench.results.report.words import and_list, duration
from lowrank_bench.results.tables.pivot import pivot


def report(records, **changes):
    return Report(title="demo", records=to_frame(records), asked=Asked((), ()), **changes)


def finding_text(records, **changes):
    return "\n".join(sentence for _, sentences in findings(report(records, **changes)) for sentence in sentences)


def cell(record, method, value, half=0.02, **changes):
    low, high = max(0.0, value - half), min(1.0, value + half)
    fields = {"method": method, "label": method, "value": value, "low": low, "high": high}
    return record(**(fields | {"stage_key": f"{method}-{value}"} | changes))


def paired(leader, label, p, every_seed=True, **changes):
    values = {"table": 0, "ratio": 2.0, "leader": leader, "label": label, "difference": 0.1, "low": 0.0, "high": 0.2}
    more = {"p_value": p, "p_corrected": p, "units": 100, "unit": "problems", "seeds": 1, "test": "McNemar, exact"}
    return Paired(**(values | more | {"every_seed": every_seed} | changes))


def test_intervals_decide_where_no_test_was_made(record):
    text = finding_text([cell(record, "a", 0.6), cell(record, "b", 0.59), cell(record, "c", 0.3)])
    assert "At 2×, a has the best estimate, 60.0 % [58.0, 62.0]" in text
    assert "its interval lies apart from that of c" in text
    assert "its interval overlaps that of b, so that the order is not settled" in text


def test_a_test_decides_over_intervals(record):
    records = [cell(record, "a", 0.6), cell(record, "b", 0.59), cell(record, "c", 0.3)]
    text = finding_text(records, paired=(paired("a", "b", 0.001), paired("a", "c", 0.2)))
    assert "separates it from b; it does not separate it from c" in text
    assert "interval lies apart" not in text


@pytest.mark.parametrize(("p", "every_seed"), [(0.05, True), (0.001, False)])
def test_no_separation_without_significance_and_every_seed(record, p, every_seed):
    records = [cell(record, "a", 0.6), cell(record, "b", 0.3)]
    text = finding_text(records, paired=(paired("a", "b", p, every_seed),))
    assert "does not separate it from b" in text


def test_ties_are_called_ties(record):
    text = finding_text([cell(record, "a", 0.6), cell(record, "b", 0.6), cell(record, "c", 0.2)])
    assert "a and b share the best estimate, 60.0 % [58.0, 62.0]; nothing separates them." in text


def test_perplexities_are_better_low(sweep):
    text = finding_text(sweep(("good", "bad"), (2.0,), language=True))
    assert re.search(r"At 2×, good has the best estimate, [\d.]+ \[[\d.]+, [\d.]+\]", text)
    assert "times the uncompressed model's" in text


def test_no_best_bias(record):
    changes = {"metric": "pct_stereotype", "scorer": "", "benchmark": "crows_pairs", "variant": "crows"}
    text = finding_text([cell(record, "a", 0.6, **changes), cell(record, "b", 0.4, **changes)])
    assert "50 is no preference: no method is called best here" in text
    assert "best estimate" not in text


def test_unequal_training_is_said(record):
    records = [cell(record, "a", 0.6), cell(record, "b", 0.3, steps_recover=900)]
    assert "The methods were not trained equally: 600 to 900 steps" in finding_text(records)
    assert "Every method had the same 600 training steps" in finding_text(records[:1])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(values=st.lists(st.integers(0, 1000), min_size=2, max_size=9, unique=True))
def test_the_best_is_the_best_and_every_other_row_is_judged(record, values):
    records = [cell(record, f"m{i}", value / 1000) for i, value in enumerate(values)]
    sentence = next(line for line in finding_text(records).splitlines() if line.startswith("At 2×"))
    best = max(values)
    assert sentence.startswith(f"At 2×, m{values.index(best)} has the best estimate, {best / 10:.1f} %")
    apart = sentence.partition("lies apart from that of ")[2].partition(";")[0]
    names = set(re.findall(r"m\d", apart))
    if len(values) <= 7:
        # In the records' own arithmetic: intervals that touch are apart or not by a float's last bit.
        low = max(0.0, best / 1000 - 0.02)
        expected = {f"m{i}" for i, v in enumerate(values) if v != best and low > min(1.0, v / 1000 + 0.02)}
        assert names == expected


def test_the_worst_text_stays_in_its_place():
    lines = fenced("a\n```\n````b\r\nc\rd\x1b[0m").split("\n")
    assert lines[0] == "`````text"
    assert lines[-1] == "`````"
    assert lines[1:-1] == ["a", "```", "````b", "c", "d\ufffd[0m"]


def test_markdown_of_hostile_names(record):
    name = "<b>|x|</b> `a`"
    text = report_markdown(report([cell(record, "svd", 0.5, label=name)]))
    assert "\\<b\\>\\|x\\|\\</b\\> \\`a\\`" in text
    assert "<b>" not in text.replace("\\<b\\>", "")


def test_words():
    assert [and_list(["a"]), and_list(["a", "b"]), and_list(["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert [duration(s) for s in (0.04, 12, 120, 7200)] == ["0.0 s", "12 s", "2 min", "2.0 h"]


def control(record, value, size, name="rtn-int4", **changes):
    return cell(
        record,
        name,
        value,
        params=PARAMS,
        bytes=size,
        ratio=1.0,
        kept=1.0,
        ratio_target=1.0,
        stage="compressed",
        **changes,
    )


@pytest.mark.parametrize(
    ("value", "size", "sentence"),
    [
        (
            0.5,
            2 * PARAMS // 2,
            "svd at 2× with 0.500, beats the control: 60.0 % [58.0, 62.0] against 50.0 % [48.0, 52.0].",
        ),
        (
            0.61,
            2 * PARAMS // 2,
            "is not separated from the control, whose interval overlaps: 60.0 % [58.0, 62.0] against 61.0 %",
        ),
        (0.6, 2 * PARAMS // 2, "is not separated from the control, whose interval overlaps: 60.0 %"),
        (0.7, 2 * PARAMS // 2, "loses to the control: 60.0 % [58.0, 62.0] against 70.0 %"),
        (0.1, PARAMS // 2, "No low-rank row is as small as the control rtn-int4, 0.250 of the bfloat16 model's bytes."),
    ],
)
def test_low_rank_is_compared_with_the_control_at_equal_bytes(record, value, size, sentence):
    text = finding_text([cell(record, "svd", 0.6), cell(record, "fwsvd", 0.4), control(record, value, size)])
    assert sentence in text
    assert "At 1×" not in text
    assert "The controls are the model after the first finetuning, rounded" in text
    assert "Every method had the same 600 training steps" in text


@pytest.mark.parametrize("name", ["rtn-int8", "rtn-int4", "rtn4+r"])
def test_a_control_is_no_ratio_of_the_question(record, tmp_path, name):
    rows = [cell(record, "svd", 0.6), cell(record, "svd", 0.4, ratio_target=3.0), control(record, 0.5, PARAMS, name)]
    write_records(tmp_path, rows)
    text = report_markdown(gather(tmp_path))
    assert "| ratios | 2×, 3× |" in text
    assert "svd has the best estimate" not in text  # it is alone


def test_a_best_row_of_two_ratios_is_best_at_both(record):
    rows = [cell(record, name, value, ratio_target=r) for name, value in (("a", 0.6), ("b", 0.3)) for r in (2.0, 3.0)]
    assert "a has the best estimate at both ratios." in finding_text(rows)
    rows += [cell(record, name, value, ratio_target=4.0) for name, value in (("a", 0.6), ("b", 0.3))]
    assert "a has the best estimate at all 3 ratios." in finding_text(rows)


def test_benchmarks_of_one_stage_are_tested_by_their_own_scores():
    names = tuple(f"p{n}" for n in range(40))
    common = {"method": "svd", "dataset_sha256": "", "prompt_sha256": "", "ratio_target": 2.0, "seed": 1, "scorer": ""}
    rows, scores = [], {}
    for table, (metric, better) in enumerate((("acc", "a"), ("perplexity", "b"))):
        for label in "ab":
            values = np.full(40, float(label == "a"))
            row = {"table": table, "metric": metric, "shown": label, "stage_key": label, "value": values.mean()}
            rows.append(common | row | {"higher_is_better": metric == "acc"})
            scores[label, metric, ""] = Scores(names, values, metric == "acc")
        (test,) = paired_tests([row for row in rows if row["table"] == table], scores)
        assert (test.leader, test.difference, test.every_seed) == (better, 1.0, True)
    assert len(paired_tests(rows, scores)) == 2
    del scores["b", "acc", ""]
    assert [test.table for test in paired_tests(rows, scores)] == [1]


def test_less_is_better_for_perplexities(record):
    measured = {"metric": "perplexity", "higher_is_better": False, "scorer": ""}
    svd = record(method="svd", **measured, value=20.0, low=19.0, high=21.0)
    plain = record(
        method="rtn-int8", label="rtn-int8", **measured, value=10.0, low=9.0, high=11.0, params=PARAMS,
        stage="compressed",
        ratio=1.0, kept=1.0, ratio_target=1.0, bytes=PARAMS, stage_key="other",
    )  # fmt: skip
    assert "loses to the control: 20.00 [19.00, 21.00] against 10.00 [9.000, 11.00]" in finding_text([svd, plain])


def test_a_report_without_a_control_says_so(record):
    text = finding_text([cell(record, "svd", 0.6)])
    assert "No control was run, so how plain quantisation does at equal bytes is not known" in text


def tuned(rates=(0.001, 0.01), chosen=0.01, tokens=900):
    choice = {"grid": list(rates), "held_out": 0.05, "losses": [2.0, 1.0], "lr": chosen, "tokens": tokens}
    return canonical_json(choice)


def test_tuning_and_its_cost_are_said(record):
    more = {"tokens_compress": 0, "tokens_recover": 300}
    rows = [cell(record, name, 0.6, tuned=tuned(tokens=tokens), **more) for name, tokens in (("a", 900), ("b", 1100))]
    text = finding_text(rows)
    assert "chose each row's learning rate after compression out of 0.001 and 0.01." in text
    assert "The whole grid read 2,000 training tokens, the trainings that were chosen 600;" in text
    assert "learning rates" in report_markdown(report(rows))
    unequal = "The methods were not tuned equally"
    assert unequal not in text
    assert unequal in finding_text([rows[0], cell(record, "b", 0.5)])
    assert unequal in finding_text([rows[0], cell(record, "b", 0.5, tuned=tuned(rates=(0.001, 0.1)))])
    assert "learning rate" not in finding_text([cell(record, "a", 0.6), cell(record, "b", 0.5)])


def test_a_rate_at_the_end_of_the_grid_is_pointed_out(record):
    inner = {"tuned": tuned(rates=(0.001, 0.01, 0.1)).replace("[2.0,1.0]", "[2.0,1.0,3.0]")}
    assert "may lie" not in finding_text([cell(record, "a", 0.6, **inner), cell(record, "b", 0.5, **inner)])
    for rate in (0.001, 0.1):
        ends = {"tuned": inner["tuned"].replace('"lr":0.01', f'"lr":{rate}')}
        assert "1 of 2 rows chose" in finding_text([cell(record, "a", 0.6, **inner), cell(record, "b", 0.5, **ends)])


SUMS = [
    ((0.1, 0.2, 0.3), (0.3, 0.2, 0.1)),
    ((0.1, 0.2), (0.15, 0.15)),
    ((0.7, 0.1, 0.2), (0.2, 0.1, 0.7)),
]
"""Scores by seed whose sums differ in doubles alone."""


def of_seeds(record, label, values, **changes):
    rows = enumerate(values, start=1)
    return [
        cell(record, label, value, **({"seed": seed, "stage_key": f"{label}-{seed}"} | changes)) for seed, value in rows
    ]


@pytest.mark.parametrize("sums", SUMS)
def test_means_that_differ_by_rounding_share_the_best_estimate(record, sums):
    for first, second in (sums, sums[::-1]):
        rows = [*of_seeds(record, "a", first), *of_seeds(record, "b", second), cell(record, "c", 0.05)]
        assert "a and b share the best estimate" in finding_text(rows)


@pytest.mark.parametrize("sums", SUMS)
@pytest.mark.parametrize("gap", [1e-9, 1e-4])
def test_a_real_difference_is_no_tie(record, sums, gap):
    first, second = sums
    rows = [*of_seeds(record, "a", first), *of_seeds(record, "b", [value - gap for value in second])]
    assert "a has the best estimate" in finding_text(rows)


def test_a_shared_best_estimate_counts_for_all_that_share_it(record):
    def rows(**values):
        return [
            cell(record, label, value, ratio_target=ratio, stage_key=f"{label}-{ratio}")
            for label, row in values.items()
            for ratio, value in zip((2.0, 3.0, 4.0), row, strict=False)
        ]

    assert "b has or shares the best estimate at both ratios." in finding_text(rows(a=(0.6, 0.3), b=(0.6, 0.4)))
    assert "a and b share the best estimate at all 3 ratios." in finding_text(
        rows(a=(0.6, 0.4, 0.2), b=(0.6, 0.4, 0.2))
    )
    text = finding_text(rows(a=(0.6, 0.4, 0.2), b=(0.6, 0.3, 0.3)))
    assert "of 3 ratios, a at 2 and b at 2; shared ones count for each." in text


def test_a_seed_in_which_gains_add_up_to_nothing_but_rounding_is_not_ahead():
    def rows(label):
        fields = {"table": 0, "method": label, "shown": label, "ratio_target": 2.0, "dataset_sha256": "d"}
        fields |= {"prompt_sha256": "p", "metric": "f1", "scorer": "f1", "higher_is_better": True}
        value = {"a": 0.9, "b": 0.1}[label]
        return [{**fields, "seed": seed, "stage_key": f"{label}{seed}", "value": value} for seed in (1, 2)]

    problems = tuple(f"p{n}" for n in range(3))
    none = np.zeros(3)
    for gains in ([0.1, 0.2, -0.3], [-0.9, 0.8, 0.1], [-0.3, -0.6, 0.9]):
        assert sum(gains) > 0
        scores = {
            **{("b1", "f1", "f1"): Scores(problems, none, False), ("b2", "f1", "f1"): Scores(problems, none, False)},
            ("a1", "f1", "f1"): Scores(problems, np.ones(3), False),
            ("a2", "f1", "f1"): Scores(problems, np.array(gains), False),
        }
        (test,) = paired_tests([*rows("a"), *rows("b")], scores)
        assert (test.leader, test.seeds) == ("a", 2)
        assert not test.every_seed


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((2, 3), "Holm-corrected p < 0.05, and in each of the seeds that both have, 2 to 3)"),
        ((1, 3), "Holm-corrected p < 0.05, and in each of the seeds that both have, 1 to 3)"),
        ((4, 2), "Holm-corrected p < 0.05, and in each of the seeds that both have, 2 to 4)"),
        ((3, 3), "Holm-corrected p < 0.05, and in each of 3 seeds)"),
        ((1, 1), "Holm-corrected p < 0.05)"),
    ],
)
def test_a_sentence_names_the_numbers_of_seeds_that_rows_have_in_common_with_the_best(record, counts, words):
    rows = [cell(record, "a", 0.6), cell(record, "b", 0.4), cell(record, "c", 0.3)]
    tests = [paired("a", label, 0.001, seeds=seeds) for label, seeds in zip("bc", counts, strict=True)]
    assert f"paired test over 100 problems ({words} separates it from b and c" in finding_text(
        rows, paired=tuple(tests)
    )


def marks(records, **changes):
    """The marks of a report's table by row and ratio, and its note."""
    content = report(records, **changes)
    table = _table(content, 0, pivot(content.records)[0])
    columns = [column.title for column in table.columns][1:]
    shown = {
        (row[0].text, ratio): field.mark
        for row in table.fields
        for ratio, field in zip(columns, row[1:], strict=True)
        if field.text
    }
    return shown, table.notes[0]


@pytest.mark.parametrize("tested", [(), ("b",), ("b", "c")])
def test_a_row_without_a_test_has_a_question_mark_where_others_are_tested(record, tested):
    rows = [cell(record, name, value) for name, value in (("a", 0.6), ("b", 0.5), ("c", 0.4))]
    shown, note = marks(rows, paired=tuple(paired("a", name, 0.001) for name in tested))
    if tested:
        expected = {"a": "best", "b": "", "c": "" if "c" in tested else "?"}
    else:
        expected = dict.fromkeys("abc", "")  # no test at all: no row is called best
    assert {name: mark for (name, _), mark in shown.items()} == expected
    assert ("?: not tested." in note) == (tested == ("b",))


def test_question_marks_are_for_compressed_models_at_ratios_with_tests(record):
    base = {"stage": "finetuned", "ratio_target": 1.0, "params": PARAMS, "steps_recover": 0}
    rows = [cell(record, "none", 0.7, **base)]
    for ratio in (2.0, 3.0):
        rows += [cell(record, name, v, ratio_target=ratio) for name, v in (("a", 0.6), ("b", 0.5), ("c", 0.4))]
    shown, note = marks(rows, paired=(paired("a", "b", 0.2),))
    assert {key: mark for key, mark in shown.items() if mark} == {
        ("a", "2×"): "best",
        ("b", "2×"): "≈",
        ("c", "2×"): "?",
    }
    assert note.endswith("no mark: it is behind. ?: not tested.")


def test_a_row_that_was_not_measured_at_a_ratio_has_no_question_mark(record):
    rows = [cell(record, name, value) for name, value in (("a", 0.6), ("b", 0.5))]
    rows.append(cell(record, "c", 0.4, ratio_target=3.0))
    shown, note = marks(rows, paired=(paired("a", "b", 0.001),))
    assert shown == {("a", "2×"): "best", ("b", "2×"): "", ("c", "3×"): ""}
    assert "?" not in note
