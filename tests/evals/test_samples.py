"""Stored samples: what is in them, scored again without a model, compared in pairs."""

import json
import math
import random
from dataclasses import replace
from functools import partial
from itertools import product

import pytest
from transformers import AutoTokenizer

from lowrank_bench.evals.base import EvalSettings, benchmarks
from lowrank_bench.evals.engines.base import Completion
from lowrank_bench.evals.grading.sandbox.programs import run_programs
from lowrank_bench.evals.kinds import code
from lowrank_bench.evals.rescore import rescore
from lowrank_bench.evals.samples import parse_samples, read_samples
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.records.paired import mcnemar, paired_interval
from lowrank_bench.results.report.answers import read_answers
from lowrank_bench.results.samples.compare import compare
from lowrank_bench.results.samples.stored import load_samples

FIELDS = {
    *("benchmark", "variant", "stage", "scorer", "problem", "problem_sha256", "sample", "temperature"),
    *("prompt_sha256", "completion", "tokens", "finish_reason", "answers", "verdicts"),
}


class Scripted:
    """An engine with the real tokenizer that answers from a list, round by round."""

    def __init__(self, folder, rounds):
        self.tokenizer, self.context_length = AutoTokenizer.from_pretrained(folder), 100_000
        self.rounds, self.seeds = rounds, []

    def generate(self, prompts, sampling, batch_size, progress=None):
        self.seeds.append(sampling.seed)
        texts = self.rounds[len(self.seeds) - 1]
        assert len(prompts) == len(texts)
        return [Completion((1, 2), text, "length" if text.endswith("…") else "stop") for text in texts]


@pytest.fixture(autouse=True)
def short_limit(monkeypatch):
    """Endless programs are stopped after one second, and after a few when they run again alone."""
    monkeypatch.setattr(code, "run_programs", partial(run_programs, timeout=1.0))


@pytest.fixture(scope="module")
def run(data_dir):
    """Evaluate scripted rounds of completions, given per benchmark as a function of the problem."""

    def evaluate(name, answers, limit=8, **changes):
        benchmark = benchmarks.get(name)()
        settings = EvalSettings(data_dir, limit, samples=len(answers), temperature=float(len(answers) > 1), **changes)
        rows = benchmark.data(settings).rows[:limit]
        rounds = [[answer(row, index) for index, row in enumerate(rows)] for answer in answers]
        engine = Scripted(data_dir / "models" / "stories260K", rounds)
        return benchmark, settings, benchmark.evaluate(engine, settings), engine

    return evaluate


def right(row, index):
    return f"The answer is: {row['answer'].split('#### ')[1]}"


def sometimes(period):
    return lambda row, index: right(row, index) if index % period == 0 else "The answer is: -1…"


def stored(outcome):
    """The samples as a file would give them back."""
    return parse_samples(json.dumps(sample, ensure_ascii=False, sort_keys=True) for sample in outcome.samples)


def plain(metrics):
    return {(m.name, m.scorer): (m.value, m.low, m.high, m.n, m.headline) for m in metrics}


CODE = {
    "humaneval": lambda row, index: row["canonical_solution"] if index % 2 else "    return 7",
    "mbpp": lambda row, index: row["code"] if index % 2 else "",
    "toy-code": lambda row, index: row["canonical_solution"] if index != 2 else "    while True: pass",
    "math": lambda row, index: row["solution"] if index % 2 else "The answer is: 1",
    "math500": lambda row, index: row["solution"] if index % 2 else "$x$",
    "gsm8k": lambda row, index: row["answer"] if index % 2 else "none",
    "toy-math": lambda row, index: row["answer"] if index % 2 else "#### 1",
}


@pytest.mark.parametrize("name", CODE)
def test_rescoring_stored_samples_gives_the_evaluation_again(name, run):
    benchmark, settings, outcome, _ = run(name, [CODE[name]], 4, stage="pretrained")
    lines = stored(outcome)
    random.Random(1).shuffle(lines)
    again = rescore(lines, benchmark, EvalSettings(settings.data_dir))
    assert plain(again.metrics) == plain(outcome.metrics)
    assert (again.dataset_sha256, again.prompt_sha256) == (outcome.dataset_sha256, outcome.prompt_sha256)
    assert again.details == outcome.details

    def steady(sample):  # which of two limits an endless loop meets first depends on what else the machine does
        timed = {"seconds"} | ({"detail"} if "timeout" in sample["verdicts"].values() else set())
        return {key: value for key, value in sample.items() if key not in timed}

    for before, after in zip(outcome.samples, again.samples, strict=True):
        assert set(before) >= FIELDS
        assert steady(before) == steady(after)
        assert set(before["verdicts"].values()) <= {"correct", "wrong", "no-answer", "timeout"}


def test_several_samples_of_each_problem(run):
    benchmark, settings, outcome, engine = run("gsm8k", [right, sometimes(2), sometimes(4), sometimes(4), sometimes(8)])
    assert engine.seeds == [42, 43, 44, 45, 46]
    assert [(line["problem"], line["sample"]) for line in outcome.samples] == [
        (str(problem), sample) for problem, sample in product(range(8), range(5))
    ]
    metrics = {(m.name, m.scorer): m for m in outcome.metrics}
    head = metrics["accuracy", "answer-is"]
    assert head.value == pytest.approx((5 + 1 + 2 + 1 + 4 + 1 + 2 + 1) / 40)
    assert head.n == 8
    assert metrics["accuracy-pass@5", "answer-is"].value == 1
    assert metrics["cut_off", ""].value == pytest.approx(23 / 40)
    assert ("accuracy-pass@10", "answer-is") not in metrics
    assert plain(rescore(stored(outcome), benchmark, EvalSettings(settings.data_dir)).metrics) == plain(outcome.metrics)


def test_pass_at_k_of_programs(run):
    wrong = lambda row, index: "    return 7"  # noqa: E731
    _, _, outcome, _ = run("toy-code", [CODE["toy-code"], wrong, wrong, wrong, wrong], 4)
    metrics = {m.name: m for m in outcome.metrics}
    assert metrics["pass@1"].value == pytest.approx(0.15)
    assert metrics["pass@5"].value == pytest.approx(0.75)
    assert metrics["pass@1"].headline
    assert not metrics["pass@5"].headline
    assert {line["kind"] for line in outcome.samples} == {"passed", "wrong", "timeout"}
    assert metrics["timeout"].value == pytest.approx(0.05)


@pytest.mark.parametrize("text", ["", "\udcff\ud800", "x" * (1 << 20), "def f(:\n" + "(" * (1 << 20)])
@pytest.mark.parametrize("name", ["gsm8k", "math", "humaneval", "mbpp"])
def test_hostile_completions_are_scored_and_can_be_stored(name, text, run, tmp_path):
    _, _, outcome, _ = run(name, [lambda row, index: text], 2)
    head = next(metric for metric in outcome.metrics if metric.headline)
    assert head.value == 0
    (tmp_path / "samples.jsonl").write_text(
        "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in outcome.samples), encoding="utf-8"
    )
    assert len(parse_samples((tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines())) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 2}, "--temperature 0.8"),
        ({"samples": 0}, "use 1 or more"),
        ({"temperature": -1.0}, "0 \\(greedy\\)"),
        ({"top_p": 0.0}, "more than 0"),
    ],
)
def test_sampling_that_makes_no_sense_is_refused_before_generation(changes, message, data_dir):
    with pytest.raises(UserError, match=message):
        benchmarks.get("gsm8k")().check(EvalSettings(data_dir, **changes))


def test_rescoring_refuses_what_does_not_fit(run, data_dir):
    benchmark, _, outcome, _ = run("gsm8k", [right, right], 3)
    lines, settings = stored(outcome), EvalSettings(data_dir)
    for changed, message in (
        ([], "no samples"),
        ([{**lines[0], "problem_sha256": "0"}, *lines[1:]], "not in the data"),
        ([{**lines[0], "problem": "1319"}, *lines[1:]], "not in the data"),
        (lines[1:], "not complete"),
        ([*lines, lines[0]], "not complete"),
    ):
        with pytest.raises(UserError, match=message):
            rescore(changed, benchmark, settings)
    with pytest.raises(UserError, match="of benchmark gsm8k, not 'math'"):
        rescore(lines, benchmarks.get("math")(), settings)
    with pytest.raises(UserError, match="of benchmark gsm8k"):
        rescore(lines, benchmarks.get("wikitext2")(), settings)
    with pytest.raises(UserError, match="line 2 of the samples is not JSON"):
        parse_samples([json.dumps(lines[0]), "{"])
    with pytest.raises(UserError, match=r"line 1 of the samples is not JSON \(nested too deeply\)"):
        parse_samples(["[" * 100_000])
    with pytest.raises(UserError, match="line 1 of the samples has no 'benchmark'"):
        parse_samples(['{"index": 0}'])


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"a":' * 100_000])
def test_a_file_of_samples_that_is_no_json_is_a_value_error_and_the_report_goes_without(text, tmp_path):
    file = tmp_path / "samples.jsonl"
    file.write_text(text + "\n")
    with pytest.raises(ValueError, match=r"nested too deeply|Expecting property name"):
        list(read_samples(file))
    assert read_answers(file) is None
    with pytest.raises(UserError, match="line 1 of the samples is not JSON"):
        load_samples(file)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 5), (9, 1), (1, 9), (30, 12)])
def test_mcnemar_is_the_binomial_test(b, c):
    """All outcomes of fair coins that are as rare as the one found, counted by brute force for small numbers."""
    n = b + c
    rare = sum(math.comb(n, i) for i in range(n + 1) if math.comb(n, i) <= math.comb(n, b))
    assert mcnemar(b, c) == pytest.approx(min(1.0, rare / 2**n))


def test_mcnemar_of_thousands_of_pairs_does_not_overflow():
    assert mcnemar(2400, 2600) == pytest.approx(0.0049, abs=0.0002)
    assert 0 < mcnemar(600, 1900) < 1e-150


def test_paired_interval_covers_the_true_difference():
    drawn, hits = random.Random(7), 0
    for _ in range(400):
        pairs = drawn.choices(["both", "a", "b", "none"], [0.3, 0.1, 0.2, 0.4], k=120)
        low, high = paired_interval(pairs.count("a"), pairs.count("b"), 120)
        hits += low <= 0.1 <= high
    assert 0.92 < hits / 400 < 0.98


def test_comparison_of_greedy_runs_is_mcnemars(run):
    _, _, all_right, _ = run("gsm8k", [right], 40)
    _, _, half, _ = run("gsm8k", [sometimes(2)], 40)
    comparison = compare(half.samples, all_right.samples)
    assert (comparison.a, comparison.b, comparison.difference) == (0.5, 1.0, 0.5)
    assert (comparison.only_a, comparison.only_b, comparison.problems) == (0, 20, 40)
    assert comparison.p_value == pytest.approx(2 / 2**20)
    assert comparison.low < 0.5 < comparison.high
    assert comparison.test == "McNemar, exact"
    assert comparison.significant
    assert comparison.sentence("svd", "bs").endswith("bs is better than svd.")
    assert compare(all_right.samples, half.samples).p_value == comparison.p_value
    same = compare(half.samples, half.samples)
    assert (same.difference, same.p_value) == (0, 1)
    assert "does not show that they differ" in same.sentence()


def test_comparison_of_sampled_runs_flips_signs(run):
    _, _, better, _ = run("gsm8k", [right, sometimes(2), sometimes(4)], 40)
    _, _, worse, _ = run("gsm8k", [sometimes(2), sometimes(4), sometimes(8)], 40)
    comparison = compare(better.samples, worse.samples)
    assert comparison.test == "sign flips over problems"
    assert comparison.low < comparison.difference < comparison.high < 0
    assert comparison.p_value < 0.01
    assert comparison == compare(better.samples, worse.samples)
    assert compare(better.samples, better.samples).p_value == 1


def _lines(shares, samples=4):
    """Sampled lines of problems, of which so many of all samples are right."""
    fields = {"benchmark": "gsm8k", "variant": "v", "scorer": "strict", "temperature": 1.0, "prompt_sha256": "p"}
    return [
        {**fields, "problem": str(i), "problem_sha256": str(i), "verdicts": {"strict": verdict}}
        for i, share in enumerate(shares)
        for verdict in ["correct"] * share + ["wrong"] * (samples - share)
    ]


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("share", [1, 2, 4])
def test_few_problems_that_differ_alike_show_nothing(n, share):
    comparison = compare(_lines([0] * n), _lines([share] * n))
    assert not comparison.significant
    assert comparison.p_value == pytest.approx(2 / 2**n, abs=0.02)
    assert -1 <= comparison.low < 0 < comparison.high <= 1
    assert comparison.low < comparison.difference <= comparison.high


@pytest.mark.parametrize("n", [2, 20, 1000])
def test_problems_without_any_difference_leave_room_for_one(n):
    same = _lines([2] * n)
    comparison = compare(same, same)
    assert (comparison.difference, comparison.p_value) == (0, 1)
    assert comparison.low == -comparison.high
    assert comparison.high == pytest.approx(1 - 0.025 ** (1 / n))
    assert compare(same[:4], same[:4]).low == -1


def test_many_problems_that_differ_alike_show_it_and_thirds_are_alike():
    comparison = compare(_lines([1] * 20, 3), _lines([2] * 20, 3))
    assert comparison.significant
    assert 0 < comparison.low < comparison.difference < comparison.high < 1
    back = compare(_lines([2] * 20, 3), _lines([1] * 20, 3))
    assert (back.low, back.high) == (pytest.approx(-comparison.high), pytest.approx(-comparison.low))


def test_comparison_uses_common_problems_and_says_how_many_are_left_out(run):
    _, _, few, _ = run("gsm8k", [right], 5)
    _, _, more, _ = run("gsm8k", [right], 9)
    comparison = compare(few.samples, more.samples)
    assert (comparison.problems, comparison.left_out) == (5, 4)


def test_comparison_refuses_what_is_not_comparable(run):
    _, _, base, _ = run("gsm8k", [right], 4)
    _, _, other_stage, _ = run("gsm8k", [right], 4, stage="pretrained")
    _, _, toy, _ = run("toy-math", [lambda row, index: row["answer"]], 4)
    with pytest.raises(UserError, match="another variant"):
        compare(base.samples, other_stage.samples)
    with pytest.raises(UserError, match="another benchmark"):
        compare(base.samples, toy.samples)
    for field, message in (("prompt_sha256", "other prompts"), ("problem_sha256", "other data")):
        with pytest.raises(UserError, match=message):
            compare(base.samples, [{**line, field: "0"} for line in base.samples])
    with pytest.raises(UserError, match="headline scorers"):
        compare(base.samples, [{**line, "scorer": "strict"} for line in base.samples])
    with pytest.raises(UserError, match="did you mean 'boxed'"):
        compare(base.samples, base.samples, scorer="boxd")
    with pytest.raises(UserError, match="no samples"):
        compare(base.samples, [])
    with pytest.raises(UserError, match=r"without verdicts.* bench leaderboard RUN compares perplexities"):
        compare(base.samples, [{"index": 0, "nll": 1.0}])
    with pytest.raises(UserError, match="no problem in common"):
        compare(base.samples[:2], base.samples[2:])
    assert replace(compare(base.samples, base.samples, "boxed"), problems=0).scorer == "boxed"
