"""Quoted numbers are valid and documented, hostile ones are refused, and verdicts follow their rule."""

import csv
import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.papers.published.document import document
from lowrank_bench.papers.published.quoted import QUOTED_COLUMNS, all_quoted, quoted_files, quoted_for, read_quoted
from lowrank_bench.papers.published.verdicts import judge, papers_model, square_and_add
from lowrank_bench.records.intervals import wilson
from lowrank_bench.results.tables.pivot import Cell, Pivot, Row

ROOT = Path(__file__).parents[2]


def find(paper: str, item: str, benchmark: str, method: str, size: str):
    (row,) = [
        row
        for row in quoted_for(paper, [item])
        if (row.benchmark, row.method, row.size) == (benchmark, method, size) and row.model != "mistral-7b"
    ]
    return row


# Typed from the papers' texts and the authors' README, not from the files under test.
@pytest.mark.parametrize(
    ("paper", "item", "benchmark", "method", "size", "value", "certainty"),
    [
        ("basis-selection", "3a", "gsm8k", "bs", "7", 0.43, "approximate"),
        ("basis-selection", "3b", "math", "svd", "7", 0.05, "stated"),
        ("basis-selection", "3a", "gsm8k", "fwsvd", "7", 0.02, "upper bound"),
        ("basis-selection", "4a", "gsm8k", "bs", "7", 0.47, "stated"),
        ("basis-selection", "5a", "humaneval", "bs", "6", 0.12, "stated"),
        ("basis-selection", "5b", "mbpp", "fwsvd", "6", 0.02, "stated"),
        ("sfsd", "uniform", "commonsense-6", "afm", "5.4", 0.6468, "stated"),
        ("sfsd", "task-specific", "winogrande", "sfsd", "80", 0.6979, "stated"),
        ("sfsd", "perplexity", "wikitext2", "sfsd", "70", 40.82, "stated"),
        ("joint-rank-k", "headline", "opencompass-average", "joint-rank-k", "80", 0.9343, "ambiguous"),
    ],
)
def test_the_numbers_are_the_papers(paper, item, benchmark, method, size, value, certainty):
    row = find(paper, item, benchmark, method, size)
    assert row.number == pytest.approx(value, rel=1e-12)
    assert row.certainty == certainty


def test_the_anchors_keep_their_context_and_scope():
    anchors = [r for r in all_quoted() if r.model == "llama2-7b" and r.benchmark == "wikitext2"]
    dense = {r.context: r.number for r in anchors if r.method == "none" and r.paper in ("svd-llm", "flat-llm")}
    assert dense == {2048: 5.47, 4096: 5.11}
    assert all(r.size_of == "matrices" for r in anchors)
    twenty = next(r for r in anchors if r.paper == "svd-llm" and r.method == "svd-llm" and r.training == "none")
    assert (twenty.number, twenty.ratio) == (8.50, pytest.approx(1.25))


def test_sizes_and_rounding():
    assert find("sfsd", "uniform", "commonsense-6", "svd", "3.4").ratio == pytest.approx(1.9819, abs=1e-4)
    assert find("sfsd", "perplexity", "wikitext2", "sfsd", "79").ratio == pytest.approx(100 / 79)
    assert find("basis-selection", "3a", "gsm8k", "svd", "7").slack == pytest.approx(0.005)
    assert find("basis-selection", "3a", "gsm8k", "bs", "7").slack == pytest.approx(0.01)
    assert find("sfsd", "perplexity", "wikitext2", "sfsd", "79").slack == pytest.approx(0.005)


def test_the_page_is_up_to_date():
    assert (ROOT / "docs" / "published.md").read_text(encoding="utf-8") == document(), (
        "write it again: python -m lowrank_bench.papers.published > docs/published.md"
    )


def test_the_page_comes_from_the_command_and_names_every_file():
    command = [sys.executable, "-m", "lowrank_bench.papers.published"]
    page = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert page == document()
    for path in quoted_files():
        assert f"## {path.name}" in page
        assert len(read_quoted(path)) > 0


GOOD = find("basis-selection", "3a", "gsm8k", "svd", "7").model_dump()


def written(path: Path, *rows: dict, header=QUOTED_COLUMNS) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow(["" if row[c] is None else row[c] for c in header])
    path.write_text(text.getvalue(), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": "nan"}, r"value: 'nan' is not a plain decimal"),
        ({"value": "1e3"}, r"value: '1e3' is not a plain decimal"),
        ({"value": "-3"}, r"value: '-3' is not a plain decimal"),
        ({"value": "101"}, r"101 % is more than everything"),
        ({"value": "9" * 400, "unit": "perplexity", "metric": "perplexity"}, r"is no model's"),
        ({"value": "0.5", "unit": "perplexity", "metric": "perplexity"}, r"a perplexity of 0.5 does not exist"),
        ({"unit": "points"}, r"unit: Input should be"),
        ({"unit": "perplexity"}, r"does not go with the metric"),
        ({"certainty": "sure"}, r"certainty: Input should be"),
        ({"source": "a blog"}, r"source: 'a blog' names no source"),
        ({"source": ""}, r"source: '' names no source"),
        ({"place": ""}, r"place: String should have at least 1 character"),
        ({"note": "=HYPERLINK(1)"}, r"note: .*would be a formula"),
        ({"note": "a\x1b[2Jb"}, r"note: control characters"),
        ({"size": "0"}, r"is no model's"),
        ({"size": "0.5"}, r"is no model's"),
        ({"size": "100", "size_as": "removed %"}, r"is no model's"),
        ({"size": "5", "size_as": "parameters (B)", "model": "gpt-9"}, r"the size of gpt-9 is not known"),
        ({"size": "1"}, r"the method svd does not go with the ratio 1"),
        ({"method": "none"}, r"the method none does not go with the ratio 8"),
        ({"n": 0}, r"n: Input should be greater"),
        ({"context": 1}, r"context: Input should be greater"),
    ],
)
def test_invalid_rows_are_refused_with_a_sentence(tmp_path, change, message):
    path = written(tmp_path / "q.csv", GOOD, GOOD | {"size": "8"} | change)
    with pytest.raises(UserError, match=rf"q\.csv: line 3 is not valid: .*{message}"):
        read_quoted(path)


def test_torn_and_doubled_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="lines 2 and 3 quote the same number"):
        read_quoted(written(tmp_path / "a.csv", GOOD, GOOD | {"value": "99"}))
    with pytest.raises(UserError, match="has not the columns"):
        read_quoted(written(tmp_path / "b.csv", GOOD, header=QUOTED_COLUMNS[:-1]))
    torn = written(tmp_path / "c.csv", GOOD | {"note": ""})
    torn.write_text(torn.read_text().rstrip().rpartition(",")[0] + "\n")
    with pytest.raises(UserError, match=rf"line 2 has {len(QUOTED_COLUMNS) - 1} of {len(QUOTED_COLUMNS)} cells"):
        read_quoted(torn)
    with pytest.raises(UserError, match="cannot be read as CSV"):
        read_quoted(tmp_path / "missing.csv")


def test_html_in_a_note_stays_text_in_the_page(tmp_path, monkeypatch):
    import lowrank_bench.papers.published.document as page

    path = written(tmp_path / "q.csv", GOOD | {"note": "<script>alert(1)</script> | x"})
    monkeypatch.setattr(page, "quoted_files", lambda: [path])
    monkeypatch.setattr(page, "FOLDER", tmp_path)
    text = page.document()
    assert r"\<script\>alert(1)\</script\> \| x" in text


QUOTED = find("basis-selection", "3a", "gsm8k", "svd", "7")
BOUND = find("basis-selection", "3a", "gsm8k", "fwsvd", "7")
PARAMS = 6_738_415_616


def cell(solved: int, n: int = 1319, ratio: float = 7.0, **changes) -> Cell:
    low, high = wilson(solved, n)
    values = {"seeds": (42,), "across_seeds": False, "ratio": ratio, "kept": 1 / ratio, "ratio_matrices": ratio}
    values |= {"params": PARAMS / ratio, "bytes": 1.0, "tokens": 1e6}
    return Cell(**({"value": solved / n, "low": low, "high": high, "runtime_bytes": 2.0} | values | changes))


def table(of: Cell, label: str = "svd", **changes) -> Pivot:
    values = {"model": "llama2-7b", "task": "math", "benchmark": "gsm8k", "variant": "gsm8k-0shot-alpaca"}
    values |= {"metric": "accuracy", "scorer": "answer-is", "n": 1319, "engine": "vllm", "dtype": "bfloat16"}
    values |= {"data": "", "higher_is_better": True, "confidence": 0.95, "ratios": (7.0,)}
    return Pivot(**(values | changes), rows=(Row(label, "recovered", {7.0: of}),))


SAME = {"svd": "svd", "fwsvd": "fwsvd"}


def test_square_and_add_gives_newcombes_own_example():
    """Newcombe 1998, Table II, contrast (a): 56/70 - 48/80, method 10: 0.0524 to 0.3339."""
    first, second = (56 / 70, *wilson(56, 70)), (48 / 80, *wilson(48, 80))
    gap = square_and_add(first, second)
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    turned = square_and_add(second, first)
    assert (turned.low, turned.high) == pytest.approx((-gap.high, -gap.low))


@given(st.integers(0, 1319))
def test_a_verdict_follows_from_the_distance(solved):
    verdict = judge(QUOTED, table(cell(solved)), SAME)
    points = abs(100 * solved / 1319 - 27)
    if points <= 3:
        assert verdict.outcome == "reproduced"
    if points >= 5:
        assert verdict.outcome == "not reproduced"
    assert re.match(r"difference [+-]\d+\.\d \[", verdict.reason)


@given(st.integers(0, 1319))
def test_an_upper_bound_is_met_from_below_only(solved):
    outcome = judge(BOUND, table(cell(solved), "fwsvd"), SAME).outcome
    if solved / 1319 <= 0.02:
        assert outcome == "reproduced"
    if solved / 1319 >= 0.05:
        assert outcome == "not reproduced"


@pytest.mark.parametrize(
    ("ours", "reason"),
    [
        (table(cell(356), model="tiny"), "other model: ours is tiny, theirs llama2-7b"),
        (table(cell(356, params=9e8)), "ours is called llama2-7b but has 6,300,000,000 parameters"),
        (table(cell(356), benchmark="math"), "other benchmark"),
        (table(cell(356), metric="maj@k"), "other metric"),
        (table(cell(356), n=50), "other problems: ours are 50, theirs 1,319"),
        (table(cell(356), "other"), "ours has no svd"),
        (table(cell(356, ratio=6.0)), "ours was not measured at 7x"),
        (table(cell(356, tokens=0.0)), "other training after compression"),
        (table(cell(356, low=float("-inf"), high=float("inf"))), "ours has no interval"),
        (table(cell(356, low=0.0, high=0.9)), "too wide to tell"),
        (None, "ours has no gsm8k"),
    ],
)
def test_unequal_conditions_are_not_compared(ours, reason):
    verdict = judge(QUOTED, ours, SAME)
    assert verdict.outcome == "not comparable"
    assert reason in verdict.reason


def test_departures_and_ambiguous_sources_are_not_compared():
    verdict = judge(QUOTED, table(cell(356)), SAME, ["ours has other training steps"])
    assert (verdict.outcome, verdict.reason) == ("not comparable", "ours has other training steps")
    unsure = QUOTED.model_copy(update={"certainty": "ambiguous", "note": "kept or removed"})
    assert judge(unsure, table(cell(356)), SAME).reason == "the source is ambiguous: kept or removed"


def test_perplexities_need_the_same_window_and_shots_the_same_prompt():
    quoted = find("sfsd", "perplexity", "wikitext2", "sfsd", "79")
    value = {"value": 27.0, "low": 26.0, "high": 28.0, "tokens": 0.0}
    own = {"model": "huggyllama/llama-7b", "benchmark": "wikitext2", "metric": "perplexity", "scorer": "", "n": 2000}
    own |= {"higher_is_better": False, "task": "commonsense"}
    ours = table(cell(0, ratio=100 / 79, **value), "sfsd", variant="wikitext2-test-128", **own)
    assert judge(quoted, ours, {"sfsd": "sfsd"}).outcome == "reproduced"
    far = replace(
        ours,
        rows=(
            Row(
                "sfsd",
                "compressed",
                {1.27: cell(0, ratio=100 / 79, **value | {"value": 25.9, "low": 25.8, "high": 26.0})},
            ),
        ),
    )
    assert judge(quoted, far, {"sfsd": "sfsd"}).outcome == "not reproduced"
    long = replace(ours, variant="wikitext2-test-2048")
    assert "other context: ours has 2048 tokens, theirs 128" in judge(quoted, long, {"sfsd": "sfsd"}).reason
    with_bos = replace(ours, variant="wikitext2-test-128-bos")
    verdict = judge(quoted, with_bos, {"sfsd": "sfsd"})
    assert verdict.outcome == "not comparable"
    assert verdict.reason == "other windows: ours begin with a BOS each, theirs do not; measure with --bos never"
    zero_shot = find("sfsd", "task-specific", "boolq", "sfsd", "90")
    few = table(
        cell(2454, 3270, 1 / 0.9, tokens=0.0), "sfsd", benchmark="boolq", variant="boolq-5shot", model="llama-7b"
    )
    assert "other prompt: ours has 5 examples, theirs 0" in judge(zero_shot, few, {"sfsd": "sfsd"}).reason


def test_sizes_of_matrices_are_held_against_ours_of_matrices():
    quoted = next(r for r in all_quoted() if r.paper == "svd-llm" and r.value == "8.50")
    value = {"value": 8.5, "low": 8.4, "high": 8.6, "tokens": 0.0}
    own = {"benchmark": "wikitext2", "metric": "perplexity", "scorer": "", "higher_is_better": False}
    own |= {"variant": "wikitext2-test-2048"}
    nominal = table(cell(0, ratio=1.238, ratio_matrices=1.25, **value), "svd-llm", **own)
    assert judge(quoted, nominal, {"svd-llm": "svd-llm"}).outcome == "reproduced"
    whole = table(cell(0, ratio=1.25, ratio_matrices=1.31, **value), "svd-llm", **own)
    assert "not measured at 1.25x" in judge(quoted, whole, {"svd-llm": "svd-llm"}).reason


def test_hub_names_and_presets_are_one_model():
    assert papers_model("meta-llama/Llama-2-7b-hf") == papers_model("llama2-7b") == "llama2-7b"
    assert papers_model("tiny") == "tiny"
