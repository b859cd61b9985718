"""The toy tasks: right answers by a second implementation, disjoint splits, the same problems everywhere."""

import os
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_bench.evals.tasks.toy.code import toy_code_problems
from lowrank_bench.evals.tasks.toy.math import MAX_PROBLEMS, toy_math_problems
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.foundation.files import digest

N = r"(\d+)"
W = r"(?:\w+)"
# What each wording asks for, written from the text alone: (pattern, answer from the numbers in reading order).
READINGS = [
    (rf"has {N} {W}\. {W} buys {N} bags with {N} {W} each\. How many", lambda a, b, c: a + b * c),
    (rf"has {N} {W} and finds {N} more\. Then {W} gives {N} {W} to {W}\. How many", lambda a, b, c: a + b - c),
    (rf"has {N} boxes with {N} {W} each and loses {N} {W}\. How many", lambda a, b, c: a * b - c),
    (rf"has {N} {W}\. {W} has {N} more {W} than {W}\. How many .* together", lambda a, b: 2 * a + b),
    (rf"has {N} {W}\. {W} has {N} times as many\. How many .* together", lambda a, b: a * (b + 1)),
    (rf"sells {N} {W} on Monday and {N} {W} on Tuesday for {N} dollars each", lambda a, b, c: a * c + b * c),
    (rf"has {N} {W} and shares them with {N} friends\. Each friend then finds {N} more", lambda a, b, c: c + a / b),
    (rf"has a book of {N} pages and reads {N} pages each day for {N} days\. How many", lambda a, b, c: a - b * c),
    (rf"spends {N} dollars on {W} and {N} dollars on a book\. {W} had {N} dollars", lambda a, b, c: c - a - b),
    (rf"gives {N} {W} to each of {N} friends and then has {N} {W} left\. How many", lambda a, b, c: a * b + c),
]  # fmt: skip


def read(question: str) -> tuple[int, tuple[int, ...], float]:
    """Return the wording's index, the numbers, and the answer."""
    matches = [(i, m, f) for i, (pattern, f) in enumerate(READINGS) if (m := re.search(pattern, question))]
    assert len(matches) == 1, question
    index, match, solve = matches[0]
    numbers = tuple(map(int, match.groups()))
    assert list(numbers) == [int(n) for n in re.findall(r"\d+", question)]
    return index, numbers, solve(*numbers)


@pytest.mark.parametrize("split", ["train", "test"])
def test_math_answers_follow_from_the_questions_text(split):
    wordings = set()
    for problem in toy_math_problems(split, 1500, 7):
        index, _, answer = read(problem["question"])
        wordings.add(index)
        assert problem["answer"].endswith(f"\n#### {answer:.0f}")
        assert answer == int(answer)
    assert wordings == set(range(len(READINGS)))


def test_math_solutions_hold_line_by_line():
    for problem in toy_math_problems("train", 1000, 42):
        *lines, last = problem["answer"].split("\n")
        assert len(lines) == 2
        for line in lines:
            left, operator, right, result, repeated = re.search(
                r"(\d+)([-+*/])(\d+)=<<\1\2\3=(\d+)>>(\d+) ", line
            ).groups()
            a, b = int(left), int(right)
            assert {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[operator] == int(result) == int(repeated)
        assert last == f"#### {result}"


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_math_splits_share_no_numbers_under_any_seeds(seed, other):
    train = toy_math_problems("train", 300, seed)
    test = toy_math_problems("test", 300, other)
    assert len({p["question"] for p in train}) == len({p["question"] for p in test}) == 300
    assert not {read(p["question"])[:2] for p in train} & {read(p["question"])[:2] for p in test}


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_code_splits_share_no_prompt_under_any_seeds(seed, other):
    train = {p["prompt"] for p in toy_code_problems("train", 1000, seed)}
    test = {p["prompt"] for p in toy_code_problems("test", 250, other)}
    assert len(train) == 1000
    assert len(test) == 250
    assert not train & test


def passes(problem: dict[str, str], body: str) -> bool:
    names: dict = {}
    exec(problem["prompt"] + body + "\n" + problem["test"], names)
    try:
        names["check"](names[problem["entry_point"]])
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("split", ["train", "test"])
def test_code_tests_accept_the_solution_and_reject_a_changed_constant(split):
    for problem in toy_code_problems(split, 500, 3):
        body = problem["canonical_solution"]
        assert passes(problem, body)
        for match in re.finditer(r"\d+", body):
            changed = body[: match.start()] + str(int(match[0]) + 1) + body[match.end() :]
            assert not passes(problem, changed), (problem, changed)


def test_code_has_the_fields_of_humaneval():
    problems = toy_code_problems("test", 250, 42)
    assert len({p["task_id"] for p in problems}) == 250
    for problem in problems:
        assert set(problem) == {"task_id", "prompt", "entry_point", "canonical_solution", "test"}
        assert problem["prompt"].startswith(f"def {problem['entry_point']}(")
        assert problem["test"].startswith("def check(candidate):\n    assert ")


@pytest.mark.parametrize("make", [toy_math_problems, toy_code_problems])
def test_same_seed_same_problems_and_a_smaller_count_is_a_prefix(make):
    assert make("train", 200, 5) == make("train", 400, 5)[:200]
    assert make("train", 200, 5) != make("train", 200, 6)
    assert make("test", 0, 5) == []


def test_same_problems_in_a_fresh_process():
    here = digest([toy_math_problems("train", 300, 42), toy_code_problems("test", 200, 42)])
    program = (
        "from lowrank_bench.evals.tasks.toy.math import toy_math_problems as m\n"
        "from lowrank_bench.evals.tasks.toy.code import toy_code_problems as c\n"
        "from lowrank_bench.foundation.files import digest\n"
        "print(digest([m('train', 300, 42), c('test', 200, 42)]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == here


@pytest.mark.parametrize("make", [toy_math_problems, toy_code_problems])
def test_bad_requests_teach(make):
    with pytest.raises(UserError, match="did you mean 'train'"):
        make("trian", 10, 42)
    with pytest.raises(UserError, match=r"ask for 0 to \d+"):
        make("test", MAX_PROBLEMS + 1, 42)
    with pytest.raises(UserError, match="ask for 0 to"):
        make("test", -1, 42)
