"""The table of methods: one row a method, made of its `Requirements`. Imports no torch.

``python -m lowrank_bench.methods.table docs/methods/README.md`` writes it into the page.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from ..foundation.errors import UserError
from ..foundation.registry import Listing
from .registry import methods
from .requirements import Requirements

COLUMNS = ("data", "gradients", "trains", "shares", "ranks", "storage", "paper", "status")
"""Of the table in the docs."""

BEGIN = "<!-- written by python -m lowrank_bench.methods.table docs/methods/README.md -->\n"
END = "<!-- end of what was written -->\n"


def cells(requires: Requirements) -> Mapping[str, str]:
    """Return what the table says of a method: `COLUMNS` and ``note``, each as text."""
    words = {
        "calibration": requires.statistics,
        "search": requires.measures or requires.searches,
        "training": requires.trains,
    }
    return {
        "data": ", ".join(word for word, applies in words.items() if applies) or "none",
        "gradients": "yes" if requires.gradients or requires.trains else "no",
        "trains": "yes" if requires.trains else "no",
        "shares": requires.shares or "no",
        "ranks": requires.ranks,
        "storage": ("k(n+Σm)" if requires.shares else "r(m+n)") + ("+m" if requires.affine else ""),
        "paper": requires.paper or "–",
        "status": requires.status or "–",
        "note": requires.note or "–",
    }


def listed(listing: Listing) -> Requirements | None:
    """Return what a listed method declares, None where that is only known by importing it."""
    return None if listing.declared is None else Requirements(**listing.declared)


def markdown() -> str:
    """Return the table of the built-in methods in Markdown, each with a link to its page."""
    lines = [f"| {' | '.join(('method', *COLUMNS))} |", "| --- " * (len(COLUMNS) + 1) + "|"]
    for listing in methods.listings():
        requires = listed(listing)
        if listing.origin == "built in" and requires is not None:
            row = cells(requires)
            name = f"[{listing.name}]({listing.name}.md)"
            lines.append(f"| {' | '.join((name, *(row[column] for column in COLUMNS)))} |")
    return "\n".join(lines) + "\n"


def updated(page: str) -> str:
    """Return a page with the present table between its two marks.

    Raises:
        UserError: the page has no such marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"the page has no place for the table; put {BEGIN.strip()} and {END.strip()} around it")
    return f"{before}{BEGIN}\n{markdown()}\n{END}{after}"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(updated(Path(name).read_text(encoding="utf-8")), encoding="utf-8")
