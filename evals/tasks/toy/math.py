"""A toy GSM8K: generated two-step word problems with worked solutions, in GSM8K's own fields and style."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal, TypeVar

from ....foundation.errors import UserError, unknown

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
TRAIN_PROBLEMS = 1000
TEST_PROBLEMS = 250
MAX_PROBLEMS = 20_000
"""Most problems of one split that `toy_math_problems` makes; far fewer than there are distinct questions."""

_TEST_SHARE = 5  # one in five of the number triples belongs to the test split
_LARGEST = 80  # no number of a problem or of its solution exceeds this

_NAMES = ("Tom", "Anna", "Ben", "Mia", "Sam", "Lily")
_ITEMS = ("apples", "books", "coins", "cards", "eggs", "pens", "shells", "stars")

_SMALL = range(2, 10)
_MEDIUM = range(2, 21)
_LARGE = range(10, 61)

_T = TypeVar("_T")
_Operands = tuple[str, str, str]


@dataclass(frozen=True)
class _Template:
    """One kind of problem.

    Attributes:
        question: format string over the numbers a, b, c, the names n, m and the item i.
        sentences: the two sentences of the solution, with the equation at ``{e}``.
        steps: the two calculations as (left, operator, right); ``r`` is the first one's result.
        ranges: where a, b and c are drawn from.
    """

    question: str
    sentences: tuple[str, str]
    steps: tuple[_Operands, _Operands]
    ranges: tuple[range, range, range]


_TEMPLATES = (
    _Template(
        "{n} has {a} {i}. {n} buys {b} bags with {c} {i} each. How many {i} does {n} have now?",
        ("{n} buys {e} {i}.", "{n} has {e} {i} now."),
        (("b", "*", "c"), ("a", "+", "r")),
        (_MEDIUM, _SMALL, _SMALL),
    ),
    _Template(
        "{n} has {a} {i} and finds {b} more. Then {n} gives {c} {i} to {m}. How many {i} are left?",
        ("{n} has {e} {i}.", "There are {e} {i} left."),
        (("a", "+", "b"), ("r", "-", "c")),
        (_MEDIUM, _MEDIUM, _MEDIUM),
    ),
    _Template(
        "{n} has {a} boxes with {b} {i} each and loses {c} {i}. How many {i} are left?",
        ("{n} has {e} {i}.", "There are {e} {i} left."),
        (("a", "*", "b"), ("r", "-", "c")),
        (_SMALL, _SMALL, _MEDIUM),
    ),
    _Template(
        "{n} has {a} {i}. {m} has {b} more {i} than {n}. How many {i} do they have together?",
        ("{m} has {e} {i}.", "They have {e} {i} together."),
        (("a", "+", "b"), ("a", "+", "r")),
        (_MEDIUM, _MEDIUM, range(1)),
    ),
    _Template(
        "{n} has {a} {i}. {m} has {b} times as many. How many {i} do they have together?",
        ("{m} has {e} {i}.", "They have {e} {i} together."),
        (("a", "*", "b"), ("a", "+", "r")),
        (_SMALL, _SMALL, range(1)),
    ),
    _Template(
        "{n} sells {a} {i} on Monday and {b} {i} on Tuesday for {c} dollars each. How many dollars does {n} get?",
        ("{n} sells {e} {i}.", "{n} gets {e} dollars."),
        (("a", "+", "b"), ("r", "*", "c")),
        (range(1, 9), range(1, 9), _SMALL),
    ),
    _Template(
        "{n} has {a} {i} and shares them with {b} friends. Each friend then finds {c} more {i}. "
        "How many {i} does each friend have now?",
        ("Each friend gets {e} {i}.", "Each friend has {e} {i} now."),
        (("a", "/", "b"), ("r", "+", "c")),
        (_LARGE, _SMALL, _MEDIUM),
    ),
    _Template(
        "{n} has a book of {a} pages and reads {b} pages each day for {c} days. How many pages are left?",
        ("{n} reads {e} pages.", "There are {e} pages left."),
        (("b", "*", "c"), ("a", "-", "r")),
        (_LARGE, _SMALL, _SMALL),
    ),
    _Template(
        "{n} spends {b} dollars on {i} and {c} dollars on a book. {n} had {a} dollars. How many dollars are left?",
        ("{n} spends {e} dollars.", "There are {e} dollars left."),
        (("b", "+", "c"), ("a", "-", "r")),
        (_LARGE, _MEDIUM, _MEDIUM),
    ),
    _Template(
        "{n} gives {a} {i} to each of {b} friends and then has {c} {i} left. How many {i} did {n} have before?",
        ("{n} gives {e} {i}.", "{n} had {e} {i} before."),
        (("a", "*", "b"), ("r", "+", "c")),
        (_SMALL, _SMALL, _MEDIUM),
    ),
)


def toy_math_problems(split: str, count: int, seed: int) -> list[dict[str, str]]:
    """Generate word problems in the fields of GSM8K (Cobbe et al. 2021): ``question`` and ``answer``.

    An answer is two sentences with calculator marks (``3*4=<<3*4=12>>12``) and the line ``#### N``. The questions of a
    split differ from each other, and no triple of a template and its numbers is in both splits whatever the seed. The
    same arguments give the same problems on every machine and Python version; a smaller count gives a prefix.

    Args:
        split: ``train`` or ``test``.
        count: number of problems, 0 to `MAX_PROBLEMS`.
        seed: seed of the draw.

    Raises:
        UserError: unknown split, or a count outside the range.
    """
    check_request("toy-math", split, count, MAX_PROBLEMS)
    return [{"question": question, "answer": answer} for question, answer in _draw(split, count, seed)]


@lru_cache(maxsize=4)  # the plan and each stage of a sweep ask for the same ones
def _draw(split: str, count: int, seed: int) -> tuple[tuple[str, str], ...]:
    """Return questions and answers, see `toy_math_problems`."""
    rng = random.Random(seed)
    problems: dict[str, str] = {}
    while len(problems) < count:
        index = int(rng.random() * len(_TEMPLATES))
        numbers = pick(rng, _number_triples(index, split))
        name = pick(rng, _NAMES)
        other = pick(rng, [candidate for candidate in _NAMES if candidate != name])
        question, answer = _write(_TEMPLATES[index], numbers, name, other, pick(rng, _ITEMS))
        problems.setdefault(question, answer)
    return tuple(problems.items())


def check_request(task: str, split: str, count: int, largest: int) -> None:
    """Raise a `UserError` for an unknown split or for a count outside 0 to ``largest``."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS, f" of {task}")
    if not 0 <= count <= largest:
        raise UserError(f"{task} has no {count} problems in split '{split}'; ask for 0 to {largest}")


def pick(rng: random.Random, options: Sequence[_T]) -> _T:
    """Draw one option by `random.random`, the one method whose sequence Python promises to keep across versions."""
    return options[int(rng.random() * len(options))]


def in_split(key: str, split: str, test_share: int = _TEST_SHARE) -> bool:
    """Tell whether a problem's key belongs to a split: one in ``test_share`` keys, by sha256, is a test key."""
    is_test = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % test_share == 0
    return is_test == (split == "test")


@cache
def _number_triples(index: int, split: str) -> list[tuple[int, int, int]]:
    """List the admissible numbers (a, b, c) of one template and split, in order."""
    template = _TEMPLATES[index]
    first, second, third = template.ranges
    triples = ((a, b, c) for a in first for b in second for c in third)
    return [t for t in triples if _results(template, t) and in_split(f"{index}:{t[0]}:{t[1]}:{t[2]}", split)]


def _results(template: _Template, numbers: tuple[int, int, int]) -> tuple[int, int] | None:
    """Return both results, or None where one is no whole number of 2 to `_LARGEST`."""
    values = dict(zip("abc", numbers, strict=True))
    for left, operator, right in template.steps:
        result = _apply(values[left], operator, values[right])
        if result is None or not 2 <= result <= _LARGEST:
            return None
        values["s" if "r" in values else "r"] = result
    return values["r"], values["s"]


def _apply(left: int, operator: str, right: int) -> int | None:
    """Calculate with whole numbers; None for a division with a remainder."""
    if operator == "/":
        return None if left % right else left // right
    return {"+": left + right, "-": left - right, "*": left * right}[operator]


def _write(template: _Template, numbers: tuple[int, int, int], name: str, other: str, item: str) -> tuple[str, str]:
    """Return the question and the answer as text."""
    results = _results(template, numbers)
    assert results is not None
    words: dict[str, object] = {"n": name, "m": other, "i": item, **dict(zip("abc", numbers, strict=True))}
    values = {**dict(zip("abc", numbers, strict=True)), "r": results[0]}
    lines = []
    for sentence, (left, operator, right), result in zip(template.sentences, template.steps, results, strict=True):
        calculation = f"{values[left]}{operator}{values[right]}"
        lines.append(sentence.format(e=f"{calculation}=<<{calculation}={result}>>{result}", **words))
    return template.question.format(**words), "\n".join([*lines, f"#### {results[1]}"])
