"""Reading the answer out of a completion, and comparing GSM8K answers.

Each extractor returns the answer's text or None, in time linear in the text, cut to `MAX_ANSWER` characters. The rules
and where they come from:

- `strict`, `flexible`: lm-evaluation-harness `gsm8k` version 3 (``strict-match`` takes the first match of
  ``#### (\\-?[0-9\\.\\,]+)``, also the rule of openai/grade-school-math; ``flexible-extract`` the last number).
- `answer_is`: the text after the last ``The answer is`` (with or without a colon), as MetaMathQA ends its answers.
- `boxed`: the content of the last ``\\boxed{}``, the rule of hendrycks/math.
- `minerva`: ``Final Answer: The final answer is X. I hope it is correct.``, as in lm-evaluation-harness `minerva_math`
  (Lewkowycz et al. 2022, appendix D).
- `between_dollars`: all between the first and the last ``$``, as in lm-evaluation-harness `hendrycks_math`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from .number_text import read_number

RULES_VERSION = 4
"""Raised whenever a rule below changes; part of every evaluation's identity."""

MAX_ANSWER = 1000
"""Longest answer in characters; the longest reference answer of MATH has 81. A longer one is cut and equals none."""

_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
ANSWER_IS = re.compile(r"[Tt]he (?:final )?answer is:?")
"""The words before an answer."""
_BEFORE_ANSWER = re.compile(r"[\s*]*")
_CLOSING = {"\\(": "\\)", "\\[": "\\]"}
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*")
_WORD = re.compile(r"[^\s$]+")
_BRACE = re.compile(r"[{}]")
_FINAL_STOP = re.compile(r"\.$")

_MINERVA_START = "Final Answer: The final answer is"
_MINERVA_END = re.compile(r".(?= I hope it is correct.)")

Extractor = Callable[[str], str | None]


def strict(text: str) -> str | None:
    """Return what follows the first ``#### ``."""
    match = _STRICT.search(text)
    return match.group(1)[:MAX_ANSWER] if match else None


def flexible(text: str) -> str | None:
    """Return the last number in the text."""
    numbers = _FLEXIBLE.findall(text)
    return next(part for part in numbers[-1] if part)[:MAX_ANSWER] if numbers else None


def answer_is(text: str) -> str | None:
    """Return what follows the last ``The answer is``, up to the end of the line.

    Of an answer in ``\\(…\\)`` or ``\\[…\\]``, which may begin on the next line, it is what is between these. Else a
    closing full stop (or Minerva's closing sentence), Markdown's asterisks and the dollars around it are left out.
    """
    matches = list(ANSWER_IS.finditer(text))
    if not matches:
        return None
    start = matches[-1].end()
    return _delimited(text, start) or _bare(text[start:].partition("\n")[0])


def _delimited(text: str, start: int) -> str | None:
    """Return what is between LaTeX's delimiters if an opening one comes first, and a closing one after it."""
    opening = _BEFORE_ANSWER.match(text, start)
    assert opening is not None
    closing = _CLOSING.get(text[opening.end() : opening.end() + 2])
    end = text.find(closing, opening.end() + 2) if closing else -1
    return text[opening.end() + 2 : end].strip()[:MAX_ANSWER] or None if end >= 0 else None


def _bare(line: str) -> str | None:
    answer = line.strip(" \t\r*").removesuffix("I hope it is correct.").strip()
    # The full stop may be behind closing asterisks or dollars, or before them.
    answer = answer.removesuffix(".").strip().strip("*").removesuffix(".").strip()
    # With more dollars there are several formulas, and the outer two dollars are no pair.
    if answer.count("$") - answer.count("\\$") <= 2:
        answer = answer.strip("$").removesuffix(".").strip()
    return answer[:MAX_ANSWER] or None


def boxed(text: str) -> str | None:
    """Return the content of the last ``\\boxed{}``."""
    content = last_boxed(text)
    return content if content is None else content[:MAX_ANSWER]


def minerva(text: str) -> str | None:
    """Return X of the first ``Final Answer: The final answer is X. I hope it is correct.``; X is on the same line.

    The closing sentence is taken as written even where the completion ends before it.
    """
    for line in (text + "I hope it is correct.").split("\n"):
        start = line.find(_MINERVA_START)
        if start >= 0 and (end := _MINERVA_END.search(line, start + len(_MINERVA_START))):
            return line[start + len(_MINERVA_START) : end.start()].strip()[:MAX_ANSWER]
    return None


def between_dollars(text: str) -> str | None:
    """Return what is between the first and the last ``$``, or the whole text where there are fewer than two."""
    first, last = text.find("$"), text.rfind("$")
    return (text[first + 1 : last] if last > first else text)[:MAX_ANSWER] or None


def unboxed(answer: str | None) -> str | None:
    """Return the content of an answer that is one ``\\boxed{...}`` or ``\\fbox{...}`` alone; others as they are."""
    if answer is None or not (match := _BOXED.match(answer)) or answer[match.end() : match.end() + 1] != "{":
        return answer
    end = _closing_braces(answer, match.start()).get(match.end())
    return answer[match.end() + 1 : end].strip() or None if end == len(answer) - 1 else answer


def last_boxed(text: str) -> str | None:
    """Return the content of the last complete ``\\boxed{...}`` (or ``\\fbox{...}``, ``\\boxed X``), braces balanced."""
    # One pass matches all braces: searching the partner of each opening one is quadratic in a text of braces.
    starts = list(_BOXED.finditer(text))
    ends = _closing_braces(text, starts[0].start()) if starts else {}
    for match in reversed(starts):
        at = match.end()
        if text[at : at + 1] == "{":
            if at in ends:
                return text[at + 1 : ends[at]]
        elif word := _WORD.match(text, at):
            return word.group(0)
    return None


def _closing_braces(text: str, start: int) -> dict[int, int]:
    """Map the index of each opening brace after ``start`` to that of its closing one."""
    closing, open_braces = {}, []
    for match in _BRACE.finditer(text, start):
        if match.group(0) == "{":
            open_braces.append(match.start())
        elif open_braces:
            closing[open_braces.pop()] = match.start()
    return closing


def same_text(answer: str, gold: str) -> bool:
    """Compare as lm-evaluation-harness does for GSM8K: its four substitutions one after another, then lower case."""
    return _without_ignored(answer) == _without_ignored(gold)


def _without_ignored(answer: str) -> str:
    """Take out ``,`` and ``$``, then all up to the last ``#### ``, then a full stop that is then at the end."""
    text = answer.replace(",", "").replace("$", "").rpartition("#### ")[2]
    return _FINAL_STOP.sub("", text).lower()


def same_number(answer: str, gold: str) -> bool:
    """Compare the first numbers as values, exactly (``18.00`` equals ``18``, ``3.4`` does not equal ``3``)."""
    value = read_number(answer)
    return value is not None and value == read_number(gold)
