"""Benchmarks of task files: every kind scores what a person would, from data in a file."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lowrank_bench.evals.base import EvalSettings, Metric, benchmarks
from lowrank_bench.evals.grading import text as grading
from lowrank_bench.evals.grading.text import f1, normalise
from lowrank_bench.evals.kinds.likelihood import Likelihood
from lowrank_bench.evals.tasks import base
from lowrank_bench.evals.tasks.files.opening import open_task
from lowrank_bench.foundation.errors import UserError

SETTINGS = EvalSettings()


@pytest.fixture(autouse=True)
def own_tasks(monkeypatch):
    """Tasks that a test adds are gone after it."""
    monkeypatch.setattr(base, "_added", {})


def make_benchmark(folder: Path, rows: list[dict[str, Any]], part: dict[str, Any]) -> Any:
    """Return the benchmark of a part over rows."""
    (folder / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"name": "t", "train": {"data": "train.jsonl"}, "benchmarks": [{"name": "b", "data": "test.jsonl"} | part]}
    (folder / "t.yaml").write_text(yaml.safe_dump(values))
    open_task(str(folder / "t.yaml"))
    return benchmarks.get("t-b")()


def judged(benchmark: Any, texts: list[str]) -> tuple[list[dict[str, Any]], list[Metric]]:
    """Return what the scorers say of completions, and the metrics."""
    rows = benchmark.data(SETTINGS).rows
    lines = [
        {"completion": text, "finish_reason": "stop", "prompt_sha256": "", "problem_sha256": "", "problem": str(i)}
        for i, text in enumerate(texts)
    ]
    outcome = benchmark.judge(rows, lines, SETTINGS)
    assert sum(metric.headline for metric in outcome.metrics) == 1
    return outcome.samples, outcome.metrics


@pytest.mark.parametrize(
    ("part", "texts", "verdicts"),
    [
        ({"kind": "exact"}, [" Paris\n", "paris", "", "Paris."], ["correct", "wrong", "no-answer", "wrong"]),
        ({"kind": "match"}, ["PARIS!", "the paris", " ", "pa\u0072is"], ["correct", "wrong", "no-answer", "correct"]),
        (
            {"kind": "regex", "extract": r"[Aa]nswer: (\w+)"},
            ["answer: Rome. Answer: Paris", "Paris", "Answer: Rome", "answer: paris"],
            ["correct", "no-answer", "wrong", "correct"],
        ),
    ],
)
def test_answers_that_equal_a_reference(tmp_path, part, texts, verdicts):
    rows = [{"prompt": f"capital {n}?", "answer": "Paris"} for n in range(4)]
    samples, metrics = judged(make_benchmark(tmp_path, rows, part), texts)
    assert [sample["verdicts"][part["kind"]] for sample in samples] == verdicts
    assert metrics[0].name == "accuracy"
    assert metrics[0].value == verdicts.count("correct") / 4


@pytest.mark.parametrize(
    ("left", "right"),
    [
        *((">", "<"), ("+", "-"), ("😀", "😡"), ("C++", "C"), ("C#", "C"), ("...", "!")),
        *(("-5", "5"), ("(-3)", "3"), ("1/2", "1.2"), ("3,4", "34"), ("50%", "50"), ("$50", "50"), ("10:30", "1030")),
    ],
)
def test_symbols_and_signs_make_other_answers(left, right):
    assert normalise(left) != normalise(right)
    assert normalise(left) == normalise(f" {left.lower()}\n")
    if not any(map(str.isalnum, left + right)):
        assert f1(left, right) == 0
        assert f1(left, left) == 1


@pytest.mark.parametrize(
    ("left", "right"),
    [
        *(
            ("**Yes**.", "yes"),
            ("“Yes!”", "YES"),
            ("`x`", "x"),
            ("don't", "don t"),
            ("a-b", "A B"),
            ("April-5", "april 5"),
        ),
        *(("−5", "-5"), ("(-3).", "-3"), ("1/2.", "1/2"), ("C++,", "c++"), ("'50%'", "50%")),
    ],
)
def test_punctuation_makes_no_other_answer(left, right):
    assert normalise(left) == normalise(right)


@pytest.mark.parametrize("kind", ["f1", "rouge", "bleu"])
@pytest.mark.parametrize("text", ["one two three four five", "nothing of the kind at all"])
def test_graded_answers_that_are_all_right_or_all_wrong_have_an_interval(tmp_path, kind, text):
    rows = [{"prompt": f"q{n}", "answer": "one two three four five"} for n in range(20)]
    _, metrics = judged(make_benchmark(tmp_path, rows, {"kind": kind}), [text] * 20)
    headline = metrics[0]
    assert headline.value == pytest.approx(float(text == rows[0]["answer"]), abs=0.05)
    assert 0 <= headline.low <= headline.value <= headline.high <= 1
    assert headline.high - headline.low > 0.05


@pytest.mark.parametrize(
    ("text", "reference", "verdict"),
    [
        *(("1.0", 1, "correct"), ("true", 1, "wrong"), ("false", 0, "wrong"), ("[true]", [True], "correct")),
        *(('{"a": [0]}', {"a": [False]}, "wrong"), ("NaN", 1, "no-answer"), ("Infinity", 1, "no-answer")),
    ],
)
def test_json_values_are_equal_as_json_has_it(tmp_path, text, reference, verdict):
    rows = [{"prompt": "q", "answer": reference}]
    benchmark = make_benchmark(tmp_path, rows, {"kind": "json", "schema": {}, "columns": {"answer": "answer"}})
    (sample,), _ = judged(benchmark, [text])
    assert sample["verdicts"]["equal"] == verdict
    assert (sample["verdicts"]["json"] == "no-answer") == (verdict == "no-answer")


def test_any_of_several_references_counts(tmp_path):
    rows = [{"prompt": "q", "answer": ["colour", "color"]}]
    samples, _ = judged(make_benchmark(tmp_path, rows, {"kind": "match"}), ["Color"])
    assert samples[0]["verdicts"] == {"match": "correct"}
    assert samples[0]["gold"] == "colour | color"


def test_f1_rouge_and_bleu_know_words_of_any_script(tmp_path):
    rows = [{"prompt": "q1", "answer": "the cat sat on the mat"}, {"prompt": "q2", "answer": "кошка сидит на ковре"}]
    texts = ["the cat sat", "кошка сидит на ковре"]
    samples, metrics = judged(make_benchmark(tmp_path, rows, {"kind": "f1"}), texts)
    assert samples[0]["scores"]["f1"] == pytest.approx(2 * 3 / (3 + 6))
    assert (metrics[0].name, metrics[0].headline) == ("f1", True)
    assert metrics[0].value == pytest.approx((2 / 3 + 1) / 2)
    samples, metrics = judged(make_benchmark(tmp_path, rows, {"kind": "rouge"}), texts)
    assert samples[1]["scores"] == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}
    assert samples[0]["scores"]["rougeL"] == pytest.approx(2 / 3)
    _, metrics = judged(make_benchmark(tmp_path, rows, {"kind": "bleu"}), [row["answer"] for row in rows])
    assert (metrics[0].name, metrics[0].value) == ("bleu", pytest.approx(1.0))
    _, metrics = judged(
        make_benchmark(tmp_path, rows, {"kind": "bleu"}), ["nothing alike here", "ничего такого здесь нет"]
    )
    assert metrics[0].value < 0.1
    assert metrics[0].low <= metrics[0].value <= metrics[0].high


def test_json_is_judged_by_its_schema_and_equality(tmp_path):
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    rows = [{"prompt": f"q{n}", "answer": {"age": 7}} for n in range(4)]
    texts = ['{"age": 7}', '```json\n{"age": 8}\n```', '{"age": "7"}', "age 7"]
    part = {"kind": "json", "schema": schema, "columns": {"answer": "answer"}}
    samples, metrics = judged(make_benchmark(tmp_path, rows, part), texts)
    assert [s["verdicts"]["json"] for s in samples] == ["correct", "correct", "wrong", "no-answer"]
    assert [s["verdicts"]["equal"] for s in samples] == ["correct", "wrong", "wrong", "no-answer"]
    assert metrics[0].value == 0.5
    assert "$.age" in samples[2]["detail"]
    (tmp_path / "s.json").write_text(json.dumps(schema))
    from_file = make_benchmark(tmp_path, [{"prompt": "q"}], {"kind": "json", "schema": "s.json"})
    assert judged(from_file, texts[:1])[0][0]["verdicts"] == {"json": "correct"}


def test_code_runs_in_the_sandbox(tmp_path):
    rows = [{"prompt": "write f", "tests": "assert f(2) == 4"}, {"prompt": "write g", "tests": ["assert g() == 1", ""]}]
    benchmark = make_benchmark(tmp_path, rows, {"kind": "code", "columns": {"tests": "tests"}})
    rows_read = benchmark.data(SETTINGS).rows
    scored, details = benchmark.score(
        rows_read, ["```python\ndef f(x):\n    return 2 * x\n```", "def g(): return 2"], SETTINGS
    )
    assert [score.verdicts["tests"] for score in scored] == ["correct", "wrong"]
    assert details["isolation"]


@pytest.mark.parametrize("answer", ["ship", 1, "1", "B", "b"])
def test_choices_by_text_number_or_letter(tmp_path, answer):
    rows = [{"prompt": "q", "answer": answer, "options": "bill|ship|login"}]
    benchmark = make_benchmark(tmp_path, rows, {"kind": "choice", "columns": {"choices": "options"}})
    rows_read = benchmark.data(SETTINGS).rows
    assert rows_read[0]["gold"] == 1
    requests = benchmark.requests(rows_read, SETTINGS)
    assert [tail for _, tail in requests[0]] == ["bill", "ship", "login"]  # the prompt ends in a newline
    scores = [[Likelihood(-4.0, 1), Likelihood(-3.9, 1), Likelihood(-4.5, 1)]]
    (score,) = benchmark.judge_rows(rows_read, scores)
    assert score.verdicts == {"acc": "correct", "acc_norm": "wrong"}
    assert score.choice == score.gold == 1


def test_a_prompt_of_ones_own_is_used_as_it_is_written(tmp_path):
    rows = [{"title": "{body}", "body": "text", "answer": "x"}]
    benchmark = make_benchmark(tmp_path, rows, {"kind": "exact", "instruction": "{title}: {body}"})
    (prompt,) = benchmark.prompts(benchmark.data(SETTINGS).rows, SETTINGS)
    assert "{body}: text" in prompt
    assert benchmark.variant(SETTINGS) == "t-b-0shot-alpaca"
    assert benchmark.variant(EvalSettings(chat=True)) == "t-b-0shot-chat"


def test_a_slow_regular_expression_is_a_timeout_and_no_hang(tmp_path, monkeypatch):
    monkeypatch.setattr(grading, "MATCH_SECONDS", 0.05)
    benchmark = make_benchmark(tmp_path, [{"prompt": "q", "answer": "b"}], {"kind": "regex", "extract": r"((a+)+)+$"})
    samples, metrics = judged(benchmark, ["a" * 5000 + "b"])
    assert samples[0]["verdicts"] == {"regex": "timeout"}
    assert any(metric.name == "timeout" for metric in metrics)


def test_a_schema_fetches_nothing(tmp_path):
    part = {"kind": "json", "schema": {"$ref": "https://example.com/schema.json"}}
    with pytest.raises(UserError, match=r"line \d+, field 'benchmarks.0.schema': .*refers to another document"):
        make_benchmark(tmp_path, [{"prompt": "q"}], part)
