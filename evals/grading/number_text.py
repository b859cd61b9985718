"""The first number of an answer as an exact value, however it is typed.

Besides digits, a decimal point and thousands commas it knows what people and models write for them: other minus signs
(U+2212, full-width, non-breaking hyphen, en dash before a digit), a sign before the currency (``-\\$5``), digits in
groups of three (``1{,}800``, ``1\\,800``, with a non-breaking or thin space or an apostrophe), fractions (``3/4``,
``2 1/2``, ``\\frac{3}{4}``, ``½``), powers of ten (``1e3``, ``1\\times 10^3``), full-width and other decimal digits. A
part of a number that is written in one of these ways is not taken for the whole: ``−5`` is not 5, ``3/4`` not 3 and
``1{,}800`` not 1. Digits with commas that are no groups (``3,4``) may be a list or a decimal comma: they are no number.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_MINUS_SIGNS = "-\u2212\ufe63\uff0d"
"""Hyphen-minus and minus signs; spaces may follow."""
_HYPHENS = "\u2010\u2011\u2012\u2013"
"""Hyphens and dashes that are a sign only directly before the number; the em dash never is."""
_CURRENCIES = "$€£¥₹＄"
_NARROW_SPACES = "\u00a0\u2007\u2009\u202f"

_PLAIN = str.maketrans(
    dict.fromkeys(_MINUS_SIGNS[1:], "-")
    | {"\uff0e": ".", "\uff0c": ",", "\uff0f": "/", "\u2044": "/"}
    | {
        # The space in front makes "2½" a mixed number ("2 1/2") instead of 21/2.
        sign: " " + unicodedata.normalize("NFKC", sign).replace("\u2044", "/")
        for sign in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
    }
)
_GROUP_MARK = re.compile(rf"(?<=\d)(?:['’{_NARROW_SPACES}]|\{{,\}}|,?\\[,!:; ])(?=\d{{3}}(?!\d))")
_GROUPED = r"(?!0)\d{1,3}(?:,\d{2,3})*,\d{3}(?!,?\d)"
"""Thousands, or lakhs and crores (``1,00,000``)."""
_AMOUNT = rf"(?:(?:{_GROUPED}|\d+)(?:\.\d+)?|(?<!\.)(?<!\. )\.\d+)"
_POWER = r"(?:[eE]([+-]?\d+)(?!\w)|\s*(?:\\times|\\cdot|[×·*x])\s*10\s*\^\s*(?:\{\s*(-?\d+)\s*\}|(-?\d+)))"
_ABOVE, _BELOW = (rf"\s*(?:\{{\s*(-?{_AMOUNT})\s*\}}|(\d))" for _ in range(2))
_NUMBER = re.compile(
    rf"(?:(\d+)\s*)?\\(?:[cdt]|nice|s)?frac{_ABOVE}{_BELOW}|(\d+)\s+(\d+)\s*/\s*(\d+)"
    rf"|({_AMOUNT})(?:{_POWER}|\s*/\s*(-?{_AMOUNT}))?"
)
_OTHER_COMMA = re.compile(r"(?:,|\{,\})\d")
_BRACKETED = re.compile(rf"(?:(?<=/)|(?<=/ ))\(\s*(-?{_AMOUNT})\s*\)")
_LETTERS = re.compile(r"(\\?)[^\W\d_]+$")
_LARGEST_POWER = 999
_OPENINGS = "=(:[{≈*"


def read_number(text: str) -> Fraction | None:
    """Return the value of the first number in a text, or None where there is none that is certain.

    None as well where its denominator is zero, its power of ten is beyond 999, or its commas are no groups.
    """
    plain = _BRACKETED.sub(r"\1", _GROUP_MARK.sub("", text.translate(_PLAIN)))
    match = _NUMBER.search(plain)
    if match is None or _OTHER_COMMA.match(plain, match.end()):
        return None
    whole, above, above_digit, below, below_digit, whole_2, above_2, below_2, first, *powers, second = match.groups()
    numerator = above or above_digit or above_2 or first
    denominator = _amount(below or below_digit or below_2 or second or "1")
    power = next(filter(None, powers), "0")
    # By length: an exponent of thousands of digits must be refused before `int` reads it.
    if denominator == 0 or len(power.lstrip("+-0")) > len(str(_LARGEST_POWER)):
        return None
    value = _amount(whole or whole_2 or "0") + _amount(numerator) * Fraction(10) ** int(power) / denominator
    return -value if _negative(plain[: match.start()]) else value


def _amount(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))


def _negative(before: str) -> bool:
    """Tell whether a number has a sign, from the text before it.

    Currency and opening brackets may come between them, and spaces where nothing but an opening comes before the sign
    (so ``$-5$``, ``-\\$5`` and ``= - 5`` are negative, and ``apples - 5`` is not). After a word it is a hyphen, as in
    ``April-5``; after a command of LaTeX, as in ``\\approx-5``, it is a sign.
    """
    rest = before.rstrip(_CURRENCIES + "\\{( \t" + _NARROW_SPACES)
    if not rest or rest[-1] not in "-" + _HYPHENS:
        return False
    if not any(character.isspace() for character in before[len(rest) :]):
        letters = _LETTERS.search(rest[:-1])
        return letters is None or bool(letters.group(1))
    start = rest[:-1].rstrip(_CURRENCIES + "\\ \t")
    return rest[-1] == "-" and (not start or start[-1] in _OPENINGS)
