"""The process in which MATH answers are compared by algebra; it may be killed at any time.

Run as ``python -m lowrank_bench.evals.grading.math.worker PARENT_ID``. It writes the line ``ready`` once its libraries
are loaded, then reads one JSON list ``[rule, gold, text]`` a line and writes one, ``[verdict, answer found or null]``,
a line. See `rules` for the rules.

Reading and simplifying take milliseconds. So plain numbers are read directly, everything read is kept, an answer that
math-verify finds written just as the reference answer is not read at all, nor are two simple answers that clearly
differ (`value`), and a difference that is clearly not zero at one point is not simplified. None of this changes a
verdict: the tests compare with the libraries as they are.
"""

from __future__ import annotations

import json
import logging
import re
import resource
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import sympy
from antlr4.atn.ParserATNSimulator import ParserATNSimulator
from antlr4.atn.PredictionMode import PredictionMode
from math_verify import grader, parse, parser, verify
from sympy.parsing.latex import parse_latex

from ....foundation.process import end_with
from ..extract import MAX_ANSWER
from .latex import put_in_dollars
from .pool import Reply
from .value import answers_clearly_differ, simple

MEMORY_BYTES = 4 << 30

_NUMBER = re.compile(
    r"(-?)(?:(0|[1-9]\d{0,30})|((?:0|[1-9]\d{0,5})\.\d{1,6})|\\frac\{(-?\d{1,12})\}\{([1-9]\d{0,11})\})"
)
_SAME = sympy.Symbol("written just as the reference answer")
# Another value for each symbol, so that a difference such as x - y does not vanish.
_TRIAL = (sympy.Rational(13, 7), sympy.Rational(29, 23), sympy.Rational(41, 17), sympy.Rational(7, 31))


class _Later(sympy.Symbol):
    """In the place of a simple expression that is read only where it is needed; its name is the expression's LaTeX."""


def plain_number(latex: str) -> Any:
    """Return an integer, decimal or simple fraction as the LaTeX readers do, or None for everything else."""
    match = _NUMBER.fullmatch(latex)
    if match is None:
        return None
    sign, integer, decimal, above, below = match.groups()
    if above is not None:
        value = sympy.Rational(int(above), int(below))
    else:
        value = sympy.Integer(integer) if integer is not None else sympy.Float(decimal)
    return -value if sign else value


class _Stage:
    """How all parsers predict at the moment; each of them asks for full context when it is made, which is ignored."""

    mode = PredictionMode.LL


def _two_stages(read_latex: Callable[[str], Any]) -> Callable[[str], Any]:
    """Let ANTLR predict with local context first, and with full context only where that finds a syntax error.

    Where the first stage finds none, both give the same tree (Parr, Harwell and Fisher 2014, section 3.2); it is much
    quicker.
    """

    def staged(latex: str) -> Any:
        _Stage.mode = PredictionMode.SLL
        try:
            return read_latex(latex)
        except MemoryError:
            raise
        except Exception:
            _Stage.mode = PredictionMode.LL
            return read_latex(latex)

    return staged


def _quick(read_latex: Callable[[str], Any]) -> Callable[[str], Any]:
    """Keep what a LaTeX reader returns, and read plain numbers without it."""
    cached = lru_cache(maxsize=8192)(_two_stages(read_latex))

    def quick(latex: str) -> Any:
        number = plain_number(latex)
        return cached(latex) if number is None else number

    return quick


_read_library = _quick(parser.parse_latex_cached.__wrapped__)
_read_sympy = _quick(parse_latex)


def minerva(gold: str, answer: str) -> Reply:
    """Tell whether the difference of two normalised answers simplifies to zero (minerva_math's ``is_equiv``)."""
    # As in the original: what cannot be subtracted (a list, a relation) raises, and `answer` calls it wrong.
    difference = _read_sympy(answer) - _read_sympy(gold)
    if differs_somewhere(difference):
        return Reply("wrong")
    return Reply("correct" if sympy.simplify(difference) == 0 else "wrong")


def differs_somewhere(difference: Any) -> bool:
    """Tell whether an expression is clearly not zero at one point, which is much quicker than simplifying it."""
    symbols = sorted(difference.free_symbols, key=str)
    if len(symbols) > len(_TRIAL):
        return False
    try:
        value = complex(difference.evalf(subs=dict(zip(symbols, _TRIAL, strict=False))))
    except (TypeError, ValueError, AttributeError, OverflowError):
        return False
    # Rounding of a true zero stays far below the lower bound; beyond the upper one cancellation hides the digits.
    return 1e-6 < abs(value) < 1e12


_simplified_to_zero = grader.sympy_symbolic_eq


def _equal_symbolically(gold: Any, answer: Any) -> bool:
    """Stand in for the library's last comparison, which simplifies the difference."""
    if isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr) and differs_somewhere(gold - answer):
        return False
    return bool(_simplified_to_zero(gold, answer))


def prepare() -> None:
    """Make the libraries of this process quick; only a worker does that to itself."""
    logging.disable(logging.CRITICAL)  # math-verify warns that it has no time limit of its own here
    ParserATNSimulator.predictionMode = property(lambda parser: _Stage.mode, lambda parser, mode: None)
    grader.sympy_symbolic_eq = _equal_symbolically


@lru_cache(maxsize=8192)
def _gold_latex(answer: str) -> tuple[str, bool]:
    """Return the reference answer's LaTeX as the library normalises it, and whether that is all of the answer."""
    # The library looks the reader up in its module at each call, so replacing it there shows what it would read.
    parser.parse_latex_cached = lambda latex: _SAME
    parsed = parse(f"\\boxed{{{answer}}}", parsing_timeout=None)
    return str(parsed[-1]), parsed[0] is _SAME


@lru_cache(maxsize=8192)
def _gold(answer: str) -> list[Any]:
    parser.parse_latex_cached = _read_library
    return list(parse(f"\\boxed{{{answer}}}", parsing_timeout=None))


def math_verify(gold: str, text: str) -> Reply:
    """Let math-verify find an answer in the text and compare it with the reference answer."""
    text = put_in_dollars(text)
    same, whole = _gold_latex(gold)

    def read_later(latex: str) -> Any:
        """Put off reading what is simple: the library only has to know that it can be read."""
        if latex == same:
            return _SAME
        return _read_library(latex) if simple(latex) is None else _Later(latex)

    parser.parse_latex_cached = read_later
    parsed = parse(text, parsing_timeout=None)
    if not parsed:
        return Reply("no-answer")
    answer = str(parsed[-1])[:MAX_ANSWER]
    if parsed[0] is _SAME:
        return Reply("correct", answer)
    if whole and isinstance(parsed[0], _Later) and answers_clearly_differ(parsed[0].name, same):
        return Reply("wrong", answer)
    if isinstance(parsed[0], sympy.Basic) and any(
        part is _SAME or isinstance(part, _Later) for part in parsed[0].free_symbols
    ):
        # A placeholder got into an expression (a union, a set, an equation): read it again, for good this time.
        parser.parse_latex_cached = _read_library
        parsed = parse(text, parsing_timeout=None)
    expected = _gold(gold)
    if all(side and isinstance(side[0], sympy.Integer) for side in (parsed, expected)):
        return Reply("correct" if parsed[0] == expected[0] else "wrong", answer)
    try:
        equal = verify(expected, parsed, timeout_seconds=None)
    except MemoryError:
        raise
    except Exception:
        equal = False
    return Reply("correct" if equal else "wrong", answer)


RULES = {"minerva": minerva, "math-verify": math_verify}


def answer(rule: str, gold: str, text: str) -> Reply:
    """Return the reply of one rule; what the algebra cannot handle is not shown to be equal."""
    try:
        return RULES[rule](gold, text)
    except MemoryError:
        return Reply("timeout")
    except Exception:
        return Reply("wrong")


def main() -> None:
    """Serve standard input until it is closed; end with the process that the first argument names."""
    end_with(int(sys.argv[1]))
    prepare()
    # `9^{9^{9}}` asks for more memory than any machine has; a MemoryError here is a verdict, the machine's end is not.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # The grammars are loaded when first used, which is not to be paid out of an answer's time.
    minerva("x+2", "2+x")
    math_verify("x+2", "$2+x$")
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(*json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
