"""What the options of a configured class mean, from ``Args:`` or ``Attributes:`` in its and its bases' docstrings."""

from __future__ import annotations

import inspect
import re

_ENTRY = re.compile(r"    (\w[\w, ]*): (.*)")


def option_help(kind: type) -> dict[str, str]:
    """Return a description of each option that a docstring describes, as plain text on one line.

    Args:
        kind: a class with Google-style docstrings; where several classes describe an option, the subclass's words are
            taken.
    """
    described: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        described |= _arguments(inspect.cleandoc(base.__dict__.get("__doc__") or ""))
    return described


def _arguments(docstring: str) -> dict[str, str]:
    _, *rest = re.split(r"\n(?:Args|Attributes):\n", docstring, maxsplit=1)
    described: dict[str, str] = {}
    names: list[str] = []
    for line in "".join(rest).splitlines():
        if entry := _ENTRY.fullmatch(line):
            names = [name.strip() for name in entry[1].split(",")]
            described |= dict.fromkeys(names, _plain(entry[2]))
        elif line.startswith("        ") and names:
            described |= {name: f"{described[name]} {_plain(line.strip())}" for name in names}
        else:
            break
    return described


def _plain(text: str) -> str:
    return text.replace("``", "'").replace("`", "")
