"""Long names on pages and in pictures: they are broken behind separators, never in the middle of a word."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import accumulate, takewhile

from markupsafe import Markup, escape

from .escape import harmless

_PIECE = re.compile(r"[^\s\-_.:=,;/+@·|&(]*[\s\-_.:=,;/+@·|&(]*")
_GROUP = re.compile(r"\([^()]{1,28}\)(?:, %)?")
_TAIL = 18


def pieces(text: str) -> list[str]:
    """Return a text's words, each with the separators behind it; joined they are the text."""
    return [piece for piece in _PIECE.findall(text) if piece]


def shorten(text: str, length: int = 80) -> str:
    """Return text of at most about ``length`` characters; the middle of a longer one is left out.

    It is cut between words, or inside a word that is itself too long.
    """
    if len(text) <= length:
        return text
    words = pieces(text)
    head = "".join(words[: _fitting(words, length - _TAIL - 3)]) or text[: length - _TAIL - 3]
    tail = "".join(words[len(words) - _fitting(words[::-1], _TAIL) :]) or text[-_TAIL:]
    return f"{head.rstrip()} … {tail}"


def shorten_all(texts: Iterable[str], length: int = 80) -> dict[str, str]:
    """Return each text with a shortened one, so that different texts stay different.

    Where `shorten` would make them equal, the place at which they begin to differ is shown too; texts that are equal
    even then are left whole.
    """
    short = {text: shorten(text, length) for text in texts}
    for again in (_with_difference, lambda texts, _: texts):
        alike: dict[str, list[str]] = {}
        for text, shown in short.items():
            alike.setdefault(shown, []).append(text)
        for same in alike.values():
            if len(same) > 1:
                short |= zip(same, again(same, length), strict=True)
    return short


def _with_difference(texts: Sequence[str], length: int) -> list[str]:
    """Return the texts with their beginning, the place from which they differ, and their end."""
    words = [pieces(text) for text in texts]
    common, start = _same(words), _same(texts)
    space = (length - _TAIL - 6) // 2
    shown = []
    for text, parts in zip(texts, words, strict=True):
        head = "".join(parts[: _fitting(parts[:common], space)]) or text[: min(space, start)]
        tail = "".join(parts[len(parts) - _fitting(parts[:common:-1], _TAIL) :]) or text[-_TAIL:]
        middle = "".join(parts[common : common + _fitting(parts[common:], space)]) or text[start : start + space]
        shown.append(" … ".join(filter(None, [head.rstrip(), middle.rstrip(), tail])))
    return shown


def _same(sequences: Sequence[Sequence[str]]) -> int:
    """Return how many first elements are the same in all sequences."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False)))


def _fitting(words: Sequence[str], length: int) -> int:
    """Return how many of the first words fit a length."""
    return sum(size <= length for size in accumulate(map(len, words)))


def wrap(text: str, width: int) -> str:
    """Return text in lines of at most ``width`` characters, broken between words; a longer word has a line of its own.

    Line breaks that the text has are kept.
    """
    lines: list[str] = []
    for part in text.split("\n"):
        line = ""
        for piece in pieces(part):
            if line and len((line + piece).rstrip()) > width:
                lines.append(line.rstrip())
                line = ""
            line += piece
        lines.append(line.rstrip())
    return "\n".join(lines)


def breakable(value: object, least: int = 13) -> object:
    """Return a page's text in which a browser may break long names behind their separators.

    Args:
        value: text; what is `Markup` or no text stays as it is.
        least: characters from which a name is long.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _with_breaks(str(harmless(value)), least)


def _with_breaks(text: str, least: int = 13) -> Markup:
    parts: list[Markup] = []
    end = 0
    for match in re.finditer(rf"\S{{{least},}}", text):
        parts += [escape(text[end : match.start()]), Markup("<wbr>").join(pieces(match[0]))]
        end = match.end()
    return Markup("").join([*parts, escape(text[end:])])


def whole(value: object) -> object:
    """Return a page's text like `breakable`; short parentheses stay on one line, as in ``accuracy (strict), %``."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    parts: list[Markup] = []
    end = 0
    text = str(harmless(value))
    for match in _GROUP.finditer(text):
        group = Markup('<span class="whole">{}</span>').format(match[0])
        parts += [_with_breaks(text[end : match.start()]), group]
        end = match.end()
    return Markup("").join([*parts, _with_breaks(text[end:])])
