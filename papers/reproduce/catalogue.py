"""The papers, figures and tables that can be made again."""

from __future__ import annotations

from collections.abc import Mapping

from ...foundation.errors import UserError, unknown
from . import basis_selection, joint_rank_k, sfsd
from .specs import Item, Paper

PAPERS: Mapping[str, Paper] = {paper.name: paper for paper in (basis_selection.PAPER, sfsd.PAPER, joint_rank_k.PAPER)}


def get_paper(name: str) -> Paper:
    """Return a paper; raise a `UserError` with the nearest name if there is none."""
    if name not in PAPERS:
        raise unknown("paper", name, PAPERS)
    return PAPERS[name]


def find_item(paper: str, figure: str | None, table: str | None) -> Item:
    """Return one figure or table of a paper.

    Raises:
        UserError: no such paper, both or neither were named, or there is none of that name; says what there is.
    """
    known = get_paper(paper)
    options = " or ".join(f"--{item.kind} {item.name}" for item in known.items[:1])
    if (figure is None) == (table is None):
        problem = "name one figure or table" if figure is None else "name a figure or a table, not both"
        raise UserError(f"{problem} of {paper}, such as {options}; there are {_names(known)}")
    kind, name = ("figure", figure) if figure is not None else ("table", table)
    for item in known.items:
        if (item.kind, item.name) == (kind, name):
            return item
    names = [item.name for item in known.items if item.kind == kind]
    if not names:
        raise UserError(f"{paper} has no {kind} here; write {options}; there are {_names(known)}")
    raise unknown(kind, str(name), names, f" of {paper}")


def _names(paper: Paper) -> str:
    kinds: dict[str, list[str]] = {}
    for item in paper.items:
        kinds.setdefault(item.kind, []).append(item.name)
    return " and ".join(f"{kind}s {', '.join(names)}" for kind, names in kinds.items())
