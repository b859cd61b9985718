"""Text of models and of other people's files, made safe to show."""

import unicodedata

_SPELLING = "\u200c\u200d"
"""Joiners without which Persian, Indic scripts and emoji are misspelt; they move nothing on a screen."""
_LONGEST_WORD = 200


def visible(text: str) -> str:
    r"""Return text whose control characters are written out, such as ``\x1b`` and ``\u202e``.

    Terminals obey escape sequences (C0 and C1 controls), reverse the order of what follows bidi controls and show
    nothing for other format characters. Line breaks and tabs stay; halves of surrogate pairs cannot be encoded.
    """
    if text.isprintable():
        return text
    return "".join(map(_written_out, text))


def _written_out(character: str) -> str:
    if character in "\n\t" or character in _SPELLING:
        return character
    if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    return (
        character.encode("ascii", "backslashreplace").decode() if ord(character) > 127 else f"\\x{ord(character):02x}"
    )


def shortened(text: str) -> str:
    """Return a sentence in which no word is longer than 200 characters; the middle of longer ones is left out."""
    return " ".join(
        word if len(word) <= _LONGEST_WORD else f"{word[:40]}…({len(word):,} characters)…{word[-10:]}"
        for word in text.split(" ")
    )


def fold_name(name: str, width: int) -> str:
    """Break a name into lines of at most ``width`` characters, behind its punctuation where there is any.

    Labels such as ``svd-llm:length=512,samples=16`` have no spaces, so tables would cut them in the middle of a word.
    """
    lines, line = [], ""
    for piece in _pieces(name):
        if line and len(line) + len(piece.rstrip()) > width:
            lines.append(line)
            line = ""
        line += piece
        while len(line.rstrip()) > width:
            lines.append(line[:width])
            line = line[width:]
    return "\n".join(part.rstrip() for part in [*lines, line] if part.strip()) or name


def _pieces(name: str) -> list[str]:
    pieces = [""]
    for before, character in zip(" " + name, name, strict=False):
        if before in " ,:;=/-_(" and character not in " ,:;=/-_(":
            pieces.append("")
        pieces[-1] += character
    return pieces
