"""`bench score`: one completion by hand, by the code path of an evaluation."""

import json

import pytest
from commands import bench

from lowrank_bench.evals.base import EvalSettings, benchmarks
from lowrank_bench.evals.one_completion import score_completion
from lowrank_bench.foundation.errors import UserError

GENERATING = [name for name in benchmarks.names() if benchmarks.get(name).generates]


def verdicts(name, completion, gold=None, item=None, **changes):
    scored = score_completion(benchmarks.get(name)(), completion, EvalSettings(**changes), gold, item)
    return {scorer: (fields["verdict"], fields["answer"]) for scorer, fields in scored.scorers.items()}


@pytest.mark.parametrize("name", GENERATING)
def test_every_generating_benchmark_scores_its_own_problem_as_an_evaluation_does(name, data_dir):
    benchmark, settings = benchmarks.get(name)(), EvalSettings(data_dir, 1)
    (row,) = benchmark.data(settings).rows[:1]
    text = row.get("canonical_solution") or row.get("code") or row.get("solution") or row.get("answer")
    (scored,), _ = benchmark.score([row], [text], settings)
    by_hand = verdicts(name, text, item=benchmark.problem_id(row, 0), data_dir=data_dir)
    assert {scorer: verdict for scorer, (verdict, _) in by_hand.items()} == scored.verdicts
    assert "correct" in scored.verdicts.values()


@pytest.mark.parametrize(
    ("gold", "completion", "headline"),
    [
        ("-5", "The answer is −5", "correct"),
        ("5", "The answer is −5", "wrong"),
        ("$1,000", "The answer is: 1000.00", "correct"),
        ("−3", "The answer is -3.", "correct"),
        ("two apples\n#### 18", "The answer is 18", "correct"),
        ("18", "I do not know", "no-answer"),
    ],
)
def test_numbers(gold, completion, headline):
    assert verdicts("gsm8k", completion, gold)["answer-is"][0] == headline


def test_latex_is_a_reference_with_or_without_the_solution_around_it():
    for gold in (r"\frac{3}{4}", r"So it is \boxed{\frac{3}{4}}."):
        by_scorer = verdicts("math", r"The answer is \(\frac34\).", gold)
        assert by_scorer["answer-is"] == ("correct", r"\frac34")
        assert by_scorer["math-verify"][0] == "correct"
        assert by_scorer["boxed"] == ("no-answer", None)


@pytest.mark.parametrize(
    ("completion", "verdict", "kind"),
    [
        ("def f(x):\n  return x + 1", "correct", "passed"),
        ("```python\ndef f(x):\n  return x\n```", "wrong", "wrong"),
        ("def f(x):\n  return 1 / 0", "wrong", "exception"),
        ("def f(x:", "wrong", "syntax"),
    ],
)
@pytest.mark.parametrize("name", ["humaneval", "mbpp", "toy-code"])
def test_asserts_are_a_reference_for_code(name, completion, verdict, kind):
    if name == "toy-code":
        completion = completion.removeprefix("```python\n").removesuffix("\n```")  # its completions have no fences
    scored = score_completion(benchmarks.get(name)(), completion, EvalSettings(), "assert f(1) == 2")
    assert (scored.scorers["tests"]["verdict"], scored.scorers["tests"]["kind"]) == (verdict, kind)
    assert scored.scorers["tests"]["isolation"] in ("bwrap", "namespaces")


@pytest.mark.parametrize(
    ("name", "gold", "item", "message"),
    [
        ("gsm8k", "abc", None, "no number"),
        ("gsm8k", "", None, "no number"),
        ("gsm8k", None, None, "one reference is needed"),
        ("gsm8k", "1", "1", "one reference is needed"),
        ("math", r"\frac{3}{4", None, "balanced braces"),
        ("math", " ", None, "balanced braces"),
        ("mbpp", "assert", None, "no Python"),
        ("mbpp", "assert True", None, "calls no function"),
        ("humaneval", "assert f(1) == g(1)", None, "one function"),
        ("toy-math", None, "9999", "250 ids go from 0 to 249"),
        ("piqa", "1", None, "compares likelihoods"),
        ("wikitext2", "1", None, "compares likelihoods"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_sentence(name, gold, item, message):
    with pytest.raises(UserError, match=message):
        verdicts(name, "x", gold, item)


def test_the_command_prints_an_object_by_scorer_and_reads_standard_input():
    done = bench("score", "gsm8k", "--gold", "-5", "--completion", "The answer is −5", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["answer-is"] == {"answer": "−5", "verdict": "correct"}
    done = bench("score", "gsm8k", "--stage", "pretrained", "--gold", "3", "--completion", "#### 3\nQuestion: x")
    assert (done.returncode, "headline" in done.stdout) == (0, True)
    assert "would have ended this completion before 'Question:'" in " ".join(done.stderr.split())


def test_latex_is_printed_as_it_is():
    done = bench("score", "math", "--gold", "18", "--completion", r"The answer is \[18\] [bold]")
    assert done.returncode == 0, done.stderr
    assert r"The answer is \[18\] [bold]" in done.stdout


def test_the_command_refuses_with_exit_code_2():
    for words in (
        ["piqa", "--gold", "1"],
        ["gsm8k"],
        ["gsm8k", "--gold", "x"],
        ["gsm8k", "--gold", "1", "--stage", "x"],
    ):
        done = bench("score", *words, "--completion", "x")
        assert (done.returncode, done.stdout) == (2, ""), done
        assert done.stderr.startswith("error: "), done.stderr
