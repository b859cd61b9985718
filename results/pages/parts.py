"""A figure on a page, drawn by a macro in ``templates/parts.html``."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from ..tables.table import Table


@dataclass(frozen=True)
class Figure:
    """A picture with its caption and its text alternative.

    Attributes:
        svg: inline SVG of our own making (`charts`).
        caption: what it shows and what to read off it.
        data: the numbers behind it, below the picture in a table that opens; None where a table beside it has them.
    """

    svg: Markup
    caption: str
    data: Table | None = None
