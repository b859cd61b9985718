"""MATH answers as strings: the two published normalisations, and exact numbers.

`normalize_minerva` is appendix D of Lewkowycz et al. 2022 as lm-evaluation-harness 0.4.13 applies it (`minerva_math`
version 3: unit words only as words of their own, indexed roots kept, commas only between groups of three digits).
`normalize_original` is the rule of hendrycks/math, which `hendrycks_math` and MetaMath use too.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

TEXT_RULES_VERSION = 1
"""Raised whenever a normalisation changes; part of every MATH evaluation's identity."""

_REPLACED = (
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
)
_UNIT_WORDS = (
    *("square", "ways", "integers", "dollars", "mph", "inches", "ft", "hours", "km", "units"),
    *("sue", "points", "feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds", "meters", "meals"),
    *("edges", "students", "childrentickets", "multiples"),
)
_MARKS_BEFORE_SUE = ("\\ldots",)
_MARKS = (
    *("\\text{s}", "\\text{.}", "\\text{\ns}", "\\text{}^2", "\\text{}^3", "\\text{\n}", "\\text{}", "\\mathrm{th}"),
    *("^\\circ", "^{\\circ}", "\\;", ",\\!", "{,}", '"', "\\dots"),
)
# The order of the published list, where `\ldots` comes before "sue"; `_LONE_UNIT` needs the words by themselves.
_REMOVED = (*_UNIT_WORDS[:10], *_MARKS_BEFORE_SUE, *_UNIT_WORDS[10:], *_MARKS)

_LONE_UNIT = re.compile(rf"(?<!\\)\b(?:{'|'.join(_UNIT_WORDS)})\b")
_COMMAND = re.compile(r"(\\[a-zA-Z]+)")
_WRAPPERS = tuple(
    re.compile(rf"\\{name}\{{(.*{lazy})\}}")
    for name, lazy in (("text", "?"), ("textbf", "?"), ("overline", "?"), ("boxed", ""))
)
_BARE_FRACTION = re.compile(r"frac([^{])(.)")
_BARE_INDEXED_ROOT = re.compile(r"sqrt(\[[^\]]*\])(\w)")
_BARE_ROOT = re.compile(r"sqrt(?!\[)([^{])")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+")


@lru_cache(maxsize=8192)
def normalize_minerva(answer: str) -> str:
    """Return an answer in the form in which Minerva's evaluation compares answers."""
    text = _LONE_UNIT.sub("", answer.rpartition("=")[2])
    for old, new in _REPLACED:
        text = text.replace(old, new)
    for removed in _REMOVED:
        if removed in text:
            text = _without_word(text, removed) if removed.isalpha() else text.replace(removed, "")
    text = "\n".join(f"${line.split('$', 2)[1]}$" if line.count("$") > 1 else line for line in text.split("\n"))
    for wrapper in _WRAPPERS:
        text = wrapper.sub(r"\1", text)
    text = _BARE_FRACTION.sub(r"frac{\1}{\2}", text)
    text = _BARE_INDEXED_ROOT.sub(r"sqrt\1{\2}", text)
    text = _BARE_ROOT.sub(r"sqrt{\1}", text).replace("$", "")
    return text.replace(",", "") if _THOUSANDS.fullmatch(text) else text


def _without_word(text: str, word: str) -> str:
    """Remove a unit everywhere but inside a command's name."""
    parts = _COMMAND.split(text)
    return "".join(part if index % 2 else part.replace(word, "") for index, part in enumerate(parts))


_PLAINER = (
    ("\n", ""),
    ("\\!", ""),
    ("\\\\", "\\"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    ("\\left", ""),
    ("\\right", ""),
    ("^{\\circ}", ""),
    ("^\\circ", ""),
    ("\\$", ""),
)
_RIGHT_UNIT = "\\text{ "
_INTEGER_RATIO = re.compile(r"(-?(?:0|[1-9]\d*))/(-?(?:0|[1-9]\d*))")


@lru_cache(maxsize=8192)
def normalize_original(answer: str) -> str | None:
    """Return an answer in the form in which hendrycks/math compares answers, or None where its rule breaks down.

    It breaks down on two units, on a root or fraction without content, and on a slash between other things than
    integers; such answers are compared unchanged.
    """
    text = answer
    for old, new in _PLAINER:
        text = text.replace(old, new)
    if text.count(_RIGHT_UNIT) > 1:
        return None
    text = text.partition(_RIGHT_UNIT)[0].replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return ""
    if text[0] == ".":
        text = "0" + text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:
        text = sides[1]
    braced = _brace_roots(text)
    if braced is None:
        return None
    fractions = _brace_fractions(braced.replace(" ", ""))
    if fractions is None:
        return None
    return _slash(fractions if fractions != "0.5" else "\\frac{1}{2}")


def _brace_roots(text: str) -> str | None:
    """Write ``\\sqrt3`` as ``\\sqrt{3}``; None if a root has nothing behind it."""
    first, *rest = text.split("\\sqrt")
    if not all(rest):
        return None
    return first + "".join("\\sqrt" + (part if part[0] == "{" else f"{{{part[0]}}}{part[1:]}") for part in rest)


def _brace_fractions(text: str) -> str | None:
    """Write ``\\frac12`` and ``\\frac1{2}`` with braces; unchanged if one is incomplete, None if one is empty."""
    result, *rest = text.split("\\frac")
    for part in rest:
        if not part:
            return None
        if part[0] == "{":
            result += "\\frac" + part
        elif len(part) < 2:
            return text
        elif part[1] == "{":
            result += f"\\frac{{{part[0]}}}{part[1:]}"
        else:
            result += f"\\frac{{{part[0]}}}{{{part[1]}}}{part[2:]}"
    return result


def _slash(text: str) -> str | None:
    """Write a ratio of two integers as a fraction; None if there is one slash between other things."""
    if text.count("/") != 1:
        return text
    if ratio := _INTEGER_RATIO.fullmatch(text):
        return f"\\frac{{{ratio.group(1)}}}{{{ratio.group(2)}}}"
    try:
        [int(side) for side in text.split("/")]
    except ValueError:
        return None
    return text


def same_original(answer: str, gold: str) -> bool:
    """Tell whether two answers are equal by the rule of hendrycks/math."""
    left, right = normalize_original(answer), normalize_original(gold)
    return answer == gold if left is None or right is None else left == right


_WHOLE = r"(?:0|[1-9]\d{0,11})"
_NUMBER = re.compile(
    rf"(-?)(?:({_WHOLE}(?:\.\d{{1,12}})?)|\\frac\{{(-?{_WHOLE})\}}\{{({_WHOLE})\}}|({_WHOLE})/({_WHOLE}))"
)


def exact_number(normalized: str) -> Fraction | None:
    """Return the value of an integer, a decimal or a simple fraction, or None for everything else."""
    match = _NUMBER.fullmatch(normalized)
    if match is None:
        return None
    sign, decimal, above, below, left, right = match.groups()
    if decimal is not None:
        value = Fraction(decimal)
    else:
        denominator = int(below or right)
        if denominator == 0:
            return None
        value = Fraction(int(above or left), denominator)
    return -value if sign else value
