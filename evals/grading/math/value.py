"""The value of a simple LaTeX expression, read in microseconds, to tell that two answers are clearly not equal.

Reading LaTeX by the libraries' grammars takes milliseconds, and most answers that are not written like the reference
answer are plainly something else: ``11\\sqrt{2}`` is not 2. `value` knows only what both libraries read alike: numbers,
single letters, pi, sums, products, fractions, roots and powers, written without anything that one could read in two
ways (``1\\frac{1}{2}`` is a product to sympy and three halves to math-verify, ``x(2)`` a function to sympy). Letters
get fixed values, so two expressions with other values there are other expressions. It never tells that two are equal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

_TOKEN = re.compile(
    r"\s*(?:((?:0|[1-9]\d{0,8})(?:\.\d{1,6})?)(?![\d.,])|([a-ci-np-z])(?![A-Za-z]|\s*[_'(])"
    r"|(\\pi)(?![A-Za-z]|\s*[_'(])|(\\(?!pi)[a-z]+)(?![A-Za-z])|([-+(){}\[\]^]))"
)
# Irrational, so that two different expressions of letters hardly ever agree by accident.
_LETTERS = {letter: 1 + math.sqrt(7 * index + 2) % 1 for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
_FRACTIONS = ("\\frac", "\\dfrac", "\\tfrac")
_MAX_LENGTH = 100
_MAX_DEPTH = 10
_LARGEST = 1e9
_SMALLEST = 1e-6
_CLEAR = 1e-4
_INFINITE = {"\\infty": 1e30, "-\\infty": -1e30}  # far beyond _LARGEST
_COMMAND = re.compile(r"\\[a-z]+")
_LETTER = re.compile(r"[A-Za-z]")
_THOUSANDS = re.compile(r"-?[1-9]\d{0,2}(?:,\d{3}){1,2}")
_GROUP = re.compile(r"\d,\d{3}")
_BRACKETS = re.compile(r"([(\[])([^()\[\]]*,[^()\[\]]*)([)\]])")
_BARE_LIST = re.compile(r"[^,]*(?:,[^,]*)+")
_UNION = re.compile(r"\s*\\cup\s*")
_EQUATION = re.compile(r"\s*[a-cj-np-z]\s*=(.*)", re.DOTALL)
_DEGREES = re.compile(r"\^(?:\\circ|\{\\circ\})\s*\Z")
_OPEN_LIST = re.compile(r"(?:\\left)?[(\[]([^,]*),(?!\d{3})")
_ROWS = re.compile(r"\\begin\{[bpv]?matrix\}-?\d+(?:/\d+)?(?:\\?-\d+(?:/\d+)?)*(?:&|\\\d)")


class Simple(NamedTuple):
    """What a text means: one ``number``, a bare ``list``, ``brackets`` around one, a ``union`` or an ``equation``.

    The numbers are the one, the list's, the ends of the intervals, or the right side of ``x =``.
    """

    kind: str
    numbers: tuple[float, ...]


class _UnknownError(Exception):
    """The text has something in it that is not simple."""


def clearly_differ(left: str, right: str) -> bool:
    """Tell whether both are simple expressions with clearly different values; False tells nothing."""
    first, second = value(left), value(right)
    return first is not None and second is not None and _apart(first, second)


def answers_clearly_differ(answer: str, gold: str) -> bool:
    """Tell whether math-verify reads both and finds them different, being clearly other numbers, lists or intervals.

    Lists differ if one has a number that is clearly not in the other, whatever the order and the brackets. A union of
    intervals is no number and no list, and an equation is its right side where the other answer is a number.
    """
    first, second = simple(answer), simple(gold)
    if first is None or second is None:
        return False
    kinds = {first.kind, second.kind}
    if "union" in kinds:
        return bool(kinds & {"number", "list"})
    if "equation" in kinds and kinds != {"equation", "number"}:
        return False
    return any(
        all(_apart(number, other) for other in others)
        for numbers, others in ((first.numbers, second.numbers), (second.numbers, first.numbers))
        for number in numbers
    )


def unreadable(latex: str) -> bool:
    """Tell that sympy does not read a text: a comma in brackets, ``&`` or a backslash and a digit within a matrix."""
    if _ROWS.match(latex):
        return True
    opening = _OPEN_LIST.match(latex)
    return opening is not None and value(opening[1]) is not None


def _apart(left: float, right: float) -> bool:
    return abs(left - right) > _CLEAR * max(1.0, abs(left), abs(right))


@lru_cache(maxsize=8192)
def simple(latex: str) -> Simple | None:
    """Return what math-verify reads in a text where that is simple, or None for everything else."""
    if len(latex) > _MAX_LENGTH:
        return None
    if _THOUSANDS.fullmatch(latex):
        return Simple("number", (float(latex.replace(",", "")),))
    number = value(_DEGREES.sub("", latex))
    if number is not None:
        return Simple("number", (number,))
    if equation := _EQUATION.fullmatch(latex):
        right = value(equation[1])
        return None if right is None else Simple("equation", (right,))
    # A comma before three digits may belong to one number or separate two.
    if _GROUP.search(latex) or _LETTER.search(_COMMAND.sub("", latex)):
        return None
    text = latex.strip()
    intervals = [_BRACKETS.fullmatch(part) for part in _UNION.split(text)]
    if all(intervals):
        return _brackets([part for part in intervals if part])
    if text.startswith("\\{") and text.endswith("\\}"):
        text = text[2:-2]
    numbers = _numbers(text) if _BARE_LIST.fullmatch(text) else None
    return None if numbers is None else Simple("list", numbers)


def _brackets(intervals: Sequence[re.Match[str]]) -> Simple | None:
    """Return the ends of one interval, or of several that lie apart, the numbers of one pair or of a longer list.

    None where sympy would simplify the union (intervals that touch, overlap or are not in order).
    """
    ends: list[float] = []
    closing = ""
    for interval in intervals:
        numbers = _numbers(interval[2])
        if numbers is None:
            return None
        if len(intervals) == 1 and interval[1] + interval[3] in ("()", "[]"):
            return Simple("brackets", numbers)
        if len(numbers) != 2 or not numbers[0] < numbers[1] or not _apart(*numbers):
            return None
        if ends and not (ends[-1] < numbers[0] or (ends[-1] == numbers[0] and closing + interval[1] == ")(")):
            return None
        ends.extend(numbers)
        closing = interval[3]
    return Simple("union" if len(intervals) > 1 else "brackets", tuple(ends))


def _numbers(text: str) -> tuple[float, ...] | None:
    """Return the numbers of a text with commas between them, an infinite one as a very large one."""
    values = [_INFINITE.get(part.strip()) or value(part) for part in text.split(",")]
    return None if None in values else tuple(number for number in values if number is not None)


@lru_cache(maxsize=8192)
def value(latex: str) -> float | None:
    """Return the value of a simple expression at the fixed values of its letters, or None for everything else."""
    if len(latex) > _MAX_LENGTH:
        return None
    try:
        return _Reader(latex).read()
    except (_UnknownError, ArithmeticError):
        return None


class _Reader:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, latex: str) -> None:
        self._tokens: list[str] = []
        self._at = self._depth = 0
        latex, position = latex.strip(), 0
        while position < len(latex):
            token = _TOKEN.match(latex, position)
            if token is None:
                raise _UnknownError
            self._tokens.append(token[token.lastindex or 0])
            position = token.end()
        self._tokens.append("")

    def read(self) -> float:
        """Return the value of the whole text."""
        result = self._sum()
        if self._next():
            raise _UnknownError
        return result

    def _next(self) -> str:
        return self._tokens[self._at]

    def _take(self, token: str) -> bool:
        if self._next() != token:
            return False
        self._at += 1
        return True

    def _expect(self, token: str) -> None:
        if not self._take(token):
            raise _UnknownError

    def _sum(self) -> float:
        sign = -1 if self._take("-") else 1
        result = sign * self._product()
        while self._next() in ("+", "-"):
            sign = -1 if self._take("-") or not self._take("+") else 1
            result += sign * self._product()
        return _checked(result)

    def _product(self) -> float:
        result, joined = self._power(), False
        while True:
            following = self._next()
            if following in ("\\cdot", "\\times"):
                self._at += 1
                joined = False
            elif following[:1].isdigit() or following in _FRACTIONS:
                raise _UnknownError  # mixed numbers among them
            elif not (following[:1].isalpha() or following in ("\\sqrt", "\\pi", "(")):
                return result
            elif joined and self._tokens[self._at - 1] == "x":
                raise _UnknownError  # between two numbers, sympy reads an x as a sign of multiplication
            else:
                joined = True
            result = _checked(result * self._power())

    def _power(self) -> float:
        base = self._factor()
        if not self._take("^"):
            return base
        if self._take("{"):
            exponent = self._inner("}")
        else:
            # Without braces only one character is the exponent, so `2^10` is not simple.
            exponent = self._factor() if len(self._next()) == 1 and self._next().isalnum() else _fail()
        if self._next() == "^" or abs(exponent) > 30 or (base <= 0 and exponent != int(exponent)):
            raise _UnknownError
        return _checked(base**exponent)

    def _factor(self) -> float:
        token = self._next()
        self._at += 1
        if token[:1].isdigit():
            return float(token)
        if token in _LETTERS:
            return _LETTERS[token]
        if token == "\\pi":
            return math.pi
        if token == "(":
            return self._inner(")")
        if token == "\\sqrt":
            return self._root()
        if token not in _FRACTIONS:
            raise _UnknownError
        self._expect("{")
        above = self._inner("}")
        self._expect("{")
        return _checked(above / self._inner("}"))

    def _root(self) -> float:
        degree = 2.0
        if self._take("["):
            degree = float(self._next()) if self._next() in ("2", "3", "4", "5", "6") else _fail()
            self._at += 1
            self._expect("]")
        self._expect("{")
        inner = self._inner("}")
        if inner <= 0:
            raise _UnknownError
        return float(inner ** (1 / degree))

    def _inner(self, closing: str) -> float:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _UnknownError
        result = self._sum()
        self._expect(closing)
        self._depth -= 1
        return result


def _checked(number: float) -> float:
    """Refuse what floating point may not tell from infinity or from zero."""
    if number and not _SMALLEST < abs(number) < _LARGEST:
        raise _UnknownError
    return number


def _fail() -> float:
    raise _UnknownError
