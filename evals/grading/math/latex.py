"""Putting an answer's bare LaTeX between dollars, because math-verify reads LaTeX only in math mode.

Each line is read once from left to right, so the work grows with the text's length, whatever it holds.
"""

from __future__ import annotations

import re

from ..extract import ANSWER_IS

_DELIMITED = re.compile(r"\$|(?<!\\)\\[(\[]|\\boxed")
"""What the library finds by itself."""
_PIECE = re.compile(r"\\[A-Za-z]+|\\.|[{}]|[A-Za-z]+|.")
_SENTENCE_END = re.compile(r"[.;:!?](?=\s|\Z)")
_SHORT_WORDS = re.compile("am|an|as|at|be|by|cm|do|ft|go|he|if|in|is|it|kg|km|me|mm|my|no|of|on|or|so|to|up|us|we")
_FUNCTIONS = re.compile("(?:arc)?(?:sin|cos|tan)h?|cot|sec|csc|log|exp|max|min|gcd|lcm|mod|det")
_BEFORE = " \t*,"
_BEHIND = " \t*,.;:!?"


def put_in_dollars(text: str) -> str:
    """Put the LaTeX after "The answer is" between dollars, on each line where nothing there is delimited."""
    return "\n".join(_line(line) if "\\" in line else line for line in text.split("\n"))


def _line(line: str) -> str:
    phrase = ANSWER_IS.search(line)
    if phrase is None or _DELIMITED.search(line, phrase.end()):
        return line
    return line[: phrase.end()] + "".join(_wrapped(run) if "\\" in run else run for run in _runs(line[phrase.end() :]))


def _runs(answer: str) -> list[str]:
    """Split an answer at the words and the ends of sentences that are outside of braces; nothing is left out."""
    runs, start, depth = [], 0, 0
    for match in _PIECE.finditer(answer):
        piece = match.group(0)
        if piece in "{}":
            depth = depth + 1 if piece == "{" else max(0, depth - 1)
        elif depth == 0 and (_is_word(piece) or _SENTENCE_END.match(answer, match.start())):
            runs += [answer[start : match.start()], piece]
            start = match.end()
    return [*runs, answer[start:]]


def _is_word(piece: str) -> bool:
    if not piece.isalpha() or _FUNCTIONS.fullmatch(piece):
        return False
    return len(piece) > 2 or _SHORT_WORDS.fullmatch(piece.lower()) is not None


def _wrapped(run: str) -> str:
    inner = run.lstrip(_BEFORE)
    if inner.startswith("a "):
        inner = inner[2:]
    head = run[: len(run) - len(inner)]
    core = inner.rstrip(_BEHIND)
    if core.endswith("\\"):  # of a mark such as "\,"
        core = inner[: len(core) + 1]
    return f"{head}${core}${inner[len(core) :]}" if core else run
