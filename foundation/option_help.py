"""What the options of a configured class mean, from ``Args:`` or ``Attributes:`` in its and its bases' docstrings."""

from __future__ import annotations

import inspect
import re

_SECTION = re.compile(r"(?:Args|Arguments|Attributes|Parameters):")
_ENTRY = re.compile(r"(\w[\w, ]*?)(?: ?\([^()]*\))?:(?: (.*))?")


def option_help(kind: type) -> dict[str, str]:
    """Return a description of each option that a docstring describes, as plain text on one line.

    Args:
        kind: a class with Google-style docstrings; where several classes describe an option, the subclass's words are
            taken. A value of None is called null, as it is typed.
    """
    described: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        described |= _arguments(inspect.cleandoc(base.__dict__.get("__doc__") or ""))
    return {name: _plain(text) for name, text in described.items()}


def _arguments(docstring: str) -> dict[str, str]:
    described: dict[str, str] = {}
    names: list[str] = []
    inside, margin = False, 0  # of a section, and how far its entries are indented
    for line in docstring.splitlines():
        text, indent = line.strip(), len(line) - len(line.lstrip())
        if not text:
            continue
        if not indent:
            inside, margin, names = _SECTION.fullmatch(text) is not None, 0, []
        elif inside:
            margin = margin or indent
            if indent <= margin and (entry := _ENTRY.fullmatch(text)):
                names = [name.strip() for name in entry[1].split(",")]
                described |= dict.fromkeys(names, entry[2] or "")
            else:
                described |= {name: f"{described[name]} {text}".strip() for name in names}
    return described


def _plain(text: str) -> str:
    return re.sub(r"\bNone\b", "null", text.replace("``", "'").replace("`", ""))
