"""How MATH completions are scored: five rules on the same text, each with the project that it reproduces.

========== ============================== ======================================== ============================
scorer     the answer is                  compared by                              as in
========== ============================== ======================================== ============================
minerva    `extract.minerva`              Minerva's normalisation: equal strings,  lm-eval ``minerva_math``
                                          or a difference that simplifies to zero
original   `extract.between_dollars`      the strings of hendrycks/math            lm-eval ``hendrycks_math``
boxed      `extract.boxed`                the strings of hendrycks/math            hendrycks/math
answer-is  `extract.answer_is`, unboxed   the strings of hendrycks/math            MetaMath ``eval_math.py``
math-verify found by the library          the library                              lm-eval's ``math_verify``
========== ============================== ======================================== ============================

Equal strings are equal before any algebra is tried, integers, decimals and simple fractions are compared exactly
without it, and simple expressions with clearly different values are different (`value`). The rest is computed in
processes that can be killed (`pool`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from ....foundation.errors import UserError
from ...kinds.generative import Scored
from .. import extract
from ..metrics import Verdict
from .pool import ITEM_SECONDS, Request, compare_all
from .text import TEXT_RULES_VERSION, exact_number, normalize_minerva, same_original
from .value import clearly_differ, unreadable

MATH_RULES_VERSION = 3
"""Raised whenever a verdict may change for the same text; part of every MATH evaluation's identity."""

EXTRACTORS: dict[str, Callable[[str], str | None]] = {
    "minerva": extract.minerva,
    "original": extract.between_dollars,
    "boxed": extract.boxed,
    "answer-is": lambda text: extract.unboxed(extract.answer_is(text)),
}
SCORERS = ("minerva", "original", "boxed", "answer-is", "math-verify")

MAX_PARSED = 400
"""Longest answer in characters that is given to algebra; the longest reference answer has 81."""
MAX_DEPTH = 30
"""Deepest nesting of braces and brackets that is given to algebra."""
MAX_READ_DEPTH = 100
"""The same for the text in which math-verify looks for an answer; what is beyond the limits is a ``timeout``."""
MAX_DIGITS = 200
MAX_READ = 20_000
"""Characters at the end of a completion in which math-verify looks for an answer."""

_DIGITS = re.compile(rf"\d{{{MAX_DIGITS}}}")
_BRACKET = re.compile(r"[][{}()]")


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that verdicts depend on; raise a `UserError` where they do not fit."""
    try:
        versions = {name: version(name) for name in ("sympy", "math-verify", "latex2sympy2_extended")}
        antlr = version("antlr4-python3-runtime")
    except PackageNotFoundError as error:
        raise UserError(f"scoring MATH needs '{error.name}'; pip install 'math-verify[antlr4_11_0]'") from None
    if not antlr.startswith("4.11."):
        raise UserError(
            f"scoring MATH needs antlr4-python3-runtime 4.11, not {antlr}, whose grammar reads nothing; "
            "pip install 'math-verify[antlr4_11_0]'"
        )
    return versions


def rules() -> dict[str, object]:
    """Return all that a verdict depends on besides the text."""
    versions = {"math": MATH_RULES_VERSION, "text": TEXT_RULES_VERSION, "extract": extract.RULES_VERSION}
    return {"scorers": list(SCORERS), "versions": versions, "libraries": library_versions(), "seconds": ITEM_SECONDS}


class Outcome(NamedTuple):
    """Of a comparison: a verdict, or what has to be computed for one."""

    verdict: Verdict | None
    request: Request | None = None


def compare_minerva(answer: str, gold: str) -> Outcome:
    """Compare two raw answers by Minerva's rule (Lewkowycz et al. 2022, appendix D; lm-eval ``minerva_math``)."""
    left, right = normalize_minerva(answer), normalize_minerva(gold)
    # From cheap to dear: most pairs are settled before a worker process has to parse anything.
    if left == right and left:
        return Outcome("correct")
    numbers = exact_number(left), exact_number(right)
    if None not in numbers:
        return Outcome("correct" if numbers[0] == numbers[1] else "wrong")
    if not left or clearly_differ(left, right):
        return Outcome("wrong")
    if not parseable(left):
        return Outcome("timeout")
    # sympy would raise on these, which the original counts as wrong; asking it would cost milliseconds.
    if unreadable(left) or unreadable(right):
        return Outcome("wrong")
    return Outcome(None, Request("minerva", right, left))


def compare_strings(answer: str, gold: str) -> Outcome:
    """Compare two raw answers by the rule of hendrycks/math."""
    return Outcome("correct" if same_original(answer, gold) else "wrong")


def read_by_library(text: str, gold: str) -> Outcome:
    """Ask math-verify, in a process that can be killed, with the end of the text; see `latex` for bare answers."""
    tail = text[-MAX_READ:]
    if not tail.strip():
        return Outcome("no-answer")
    return Outcome(None, Request("math-verify", gold, tail)) if nesting(tail) <= MAX_READ_DEPTH else Outcome("timeout")


def parseable(answer: str) -> bool:
    """Tell whether an answer is within the limits of what is given to algebra."""
    return len(answer) <= MAX_PARSED and not _DIGITS.search(answer) and nesting(answer) <= MAX_DEPTH


def nesting(text: str) -> int:
    """Return how deep brackets and braces are nested, an unclosed one counting to the end."""
    depth = deepest = 0
    for match in _BRACKET.finditer(text):
        depth = depth + 1 if match.group(0) in "{([" else max(0, depth - 1)
        deepest = max(deepest, depth)
    return deepest


def score_texts(
    texts: Sequence[str], golds: Sequence[str], workers: int | None = None, scorers: Sequence[str] = SCORERS
) -> list[Scored]:
    """Score completions against reference answers (contents of ``\\boxed{}``) by every rule, or by some."""
    scored, open_comparisons, requests = [], [], []
    for index, (text, gold) in enumerate(zip(texts, golds, strict=True)):
        answers: dict[str, str | None] = {
            name: extract_answer(text) for name, extract_answer in EXTRACTORS.items() if name in scorers
        }
        outcomes = {
            name: (compare_minerva if name == "minerva" else compare_strings)(answer, gold)
            if answer is not None
            else Outcome("no-answer")
            for name, answer in answers.items()
        }
        if "math-verify" in scorers:
            outcomes["math-verify"] = read_by_library(text, gold)
            answers["math-verify"] = None
        # "wrong" is only a placeholder for what the loop at the end replaces by the worker's reply.
        verdicts = {name: outcome.verdict or "wrong" for name, outcome in outcomes.items()}
        scored.append(Scored(answers, verdicts, {"gold": gold}))
        for name, outcome in outcomes.items():
            if outcome.request is not None:
                open_comparisons.append((index, name))
                requests.append(outcome.request)
    for (index, name), reply in zip(open_comparisons, compare_all(requests, workers), strict=True):
        scored[index].verdicts[name] = reply.verdict
        if name == "math-verify":
            scored[index].answers[name] = reply.answer
    return scored


def equivalent(answer: str, gold: str, scorer: str, workers: int | None = None) -> Verdict:
    """Compare two bare answers by one scorer; for many at once use `score_texts`."""
    if scorer == "minerva":
        outcome = compare_minerva(answer, gold)
    elif scorer == "math-verify":
        outcome = read_by_library(f"\\boxed{{{answer}}}", gold)
    else:
        outcome = compare_strings(answer, gold)
    if outcome.request is not None:
        (reply,) = compare_all([outcome.request], workers)
        return reply.verdict
    assert outcome.verdict is not None
    return outcome.verdict
