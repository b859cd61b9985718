"""A toy HumanEval: generated one-line functions with a docstring and asserts, in HumanEval's own fields."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from .math import check_request, in_split, pick

TRAIN_PROBLEMS = 1000
TEST_PROBLEMS = 250

_TEST_SHARE = 4  # one in four of a family's constants belongs to the test split

_FACTORS = range(2, 10)
_TERMS = range(1, 31)
_LIMITS = range(1, 100)


@dataclass(frozen=True)
class _Family:
    """One kind of function ``f(x)`` with the constants a and b.

    Attributes:
        docstring, body: format strings over a and b.
        meaning: what the function computes, as (x, a, b) -> value; the asserts come from here, not from the body.
        kind: what x is: ``int``, ``list`` (of whole numbers) or ``str``.
        ranges: where a and b are drawn from; ``range(1)`` for a constant that is not used.
    """

    docstring: str
    body: str
    meaning: Callable[[Any, int, int], Any]
    kind: str
    ranges: tuple[range, range]


_NONE = range(1)
_FAMILIES = (
    _Family("Return {a} times x plus {b}.", "{a} * x + {b}", lambda x, a, b: b + a * x, "int", (_FACTORS, _TERMS)),
    _Family("Return {a} times x minus {b}.", "{a} * x - {b}", lambda x, a, b: a * x - b, "int", (_FACTORS, _TERMS)),
    _Family("Return {b} minus {a} times x.", "{b} - {a} * x", lambda x, a, b: b - a * x, "int", (_FACTORS, _TERMS)),
    _Family("Return x plus {a}, times {b}.", "(x + {a}) * {b}", lambda x, a, b: b * (a + x), "int", (_TERMS, _FACTORS)),
    _Family("Return x times x plus {a}.", "x * x + {a}", lambda x, a, b: x**2 + a, "int", (_LIMITS, _NONE)),
    _Family(
        "Return the larger of x and {a}.", "max(x, {a})", lambda x, a, b: x if x > a else a, "int", (_LIMITS, _NONE)
    ),
    _Family(
        "Return the smaller of x and {a}.", "min(x, {a})", lambda x, a, b: a if x > a else x, "int", (_LIMITS, _NONE)
    ),
    _Family("Return True if x is larger than {a}.", "x > {a}", lambda x, a, b: a < x, "int", (_LIMITS, _NONE)),
    _Family(
        "Return {a} times the sum of x.",
        "{a} * sum(x)",
        lambda x, a, b: sum(a * i for i in x),
        "list",
        (_LIMITS, _NONE),
    ),
    _Family("Return the sum of x plus {a}.", "sum(x) + {a}", lambda x, a, b: sum([*x, a]), "list", (_LIMITS, _NONE)),
    _Family(
        "Return {a} times the length of x plus {b}.",
        "{a} * len(x) + {b}",
        lambda x, a, b: sum(a for _ in x) + b,
        "list",
        (_FACTORS, _TERMS),
    ),
    _Family(
        "Return the items of x plus {a}.",
        "[i + {a} for i in x]",
        lambda x, a, b: [a + i for i in x],
        "list",
        (_LIMITS, _NONE),
    ),
    _Family(
        "Return the items of x times {a} plus {b}.",
        "[i * {a} + {b} for i in x]",
        lambda x, a, b: [b + a * i for i in x],
        "list",
        (_FACTORS, _TERMS),
    ),
    _Family(
        "Return the items of x larger than {a}.",
        "[i for i in x if i > {a}]",
        lambda x, a, b: list(filter(lambda i: a < i, x)),
        "list",
        (_LIMITS, _NONE),
    ),
    _Family(
        "Return x without the first {a} items.",
        "x[{a}:]",
        lambda x, a, b: [x[i] for i in range(a, len(x))],
        "list",
        (range(2, 8), _NONE),
    ),
    _Family(
        "Return x {a} times.", "x * {a}", lambda x, a, b: "".join(x for _ in range(a)), "str", (range(2, 21), _NONE)
    ),
)


def toy_code_problems(split: str, count: int, seed: int) -> list[dict[str, str]]:
    """Generate programming problems in the fields of HumanEval (Chen et al. 2021).

    The fields are ``task_id``, ``prompt`` (a signature and a docstring), ``entry_point`` (``f``),
    ``canonical_solution`` (the indented body) and ``test`` (a ``check(candidate)`` with asserts on plain data). The
    prompts of a split differ from each other, and none is in both splits whatever the seed. The same arguments give
    the same problems on every machine and Python version; a smaller count gives a prefix.

    Args:
        split: ``train`` or ``test``.
        count: number of problems, from 0 to the number of distinct ones in the split.
        seed: seed of the draw and of the asserts' inputs.

    Raises:
        UserError: unknown split, or a count outside the range.
    """
    keys = _keys(split) if split in ("train", "test") else []
    check_request("toy-code", split, count, len(keys))
    rng = random.Random(seed)
    # Sorted by random numbers and not shuffled, for the reason that `pick` gives.
    shuffled = [key for _, key in sorted((rng.random(), key) for key in keys)]
    return [_write(f"ToyCode/{split}/{i}", *key, seed) for i, key in enumerate(shuffled[:count])]


@cache
def _keys(split: str) -> list[tuple[int, int, int]]:
    """List all problems of a split as (family, a, b)."""
    every = ((family, a, b) for family, spec in enumerate(_FAMILIES) for a in spec.ranges[0] for b in spec.ranges[1])
    return [key for key in every if in_split(f"{key[0]}:{key[1]}:{key[2]}", split, _TEST_SHARE)]


def _write(task_id: str, index: int, a: int, b: int, seed: int) -> dict[str, str]:
    """Return one problem; the asserts' inputs depend on the seed and the problem alone."""
    family = _FAMILIES[index]
    rng = random.Random(f"{seed}:{index}:{a}:{b}")
    inputs = _inputs(rng, family.kind, a)
    asserts = [f"    assert candidate({x!r}) == {family.meaning(x, a, b)!r}\n" for x in inputs]
    return {
        "task_id": task_id,
        "prompt": f'def f(x):\n    """{family.docstring.format(a=a, b=b)}"""\n',
        "entry_point": "f",
        "canonical_solution": f"    return {family.body.format(a=a, b=b)}\n",
        "test": "def check(candidate):\n" + "".join(asserts),
    }


def _inputs(rng: random.Random, kind: str, near: int) -> list[Any]:
    """Draw the arguments of one problem; those around the constant ``near`` tell it from its neighbours."""
    if kind == "str":
        return ["".join(pick(rng, "abcdefgh") for _ in range(length)) for length in range(1, 5)]
    around = range(near - 20, near + 21)
    if kind == "int":
        return [near, near + 1, near - 1, pick(rng, around), pick(rng, around)]
    edges = [near + step for step in (1, 4, 0, -1, 9, 2, -6, 3)]
    return [edges, *([pick(rng, around) for _ in range(length)] for length in (2, 3, 5, 7))]
