"""matplotlib's figures as inline SVG: text stays text, colours follow the page's theme, the same bytes each time."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from markupsafe import Markup, escape

from ..plots.curves import style
from ..plots.looks import COLOURS
from ..tables.escape import clean

INK, SOFT, FAINT, PAPER = "#010101", "#505051", "#dcdcd9", "#fefefe"
"""Colours that stand for those of the page: of text and levels, of ticks, of the grid, of what is behind."""
_THEME = {INK: "--ink", SOFT: "--soft", FAINT: "--faint", PAPER: "--paper"} | {
    colour: f"--c{number}" for number, colour in enumerate(COLOURS)
}
_STYLE: Any = {
    **dict.fromkeys(("figure.facecolor", "savefig.facecolor", "axes.facecolor"), "none"),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), SOFT),
    "grid.color": FAINT,
}
_LONG_NUMBER = re.compile(r"(?<![\d.#\w])([1-9]\d*\.\d\d)\d+")
"""Coordinates to more than a hundredth of a point are half of a file; numbers below 1 are scales and stay."""


@contextmanager
def page_style() -> Iterator[None]:
    """Draw in the page's colours, on nothing."""
    import matplotlib

    with style():
        matplotlib.rcParams.update(_STYLE)
        yield


def inline_svg(figure: Any, name: str, alt: str, tips: Mapping[str, str] | None = None) -> Markup:
    """Return a figure as SVG for a page: ids of its own, no stylesheet, and a text for those who do not see it.

    Args:
        figure: matplotlib's, drawn inside `page_style`.
        name: unique on the page; begins all ids.
        alt: the text.
        tips: what a pointer resting on an artist shows, by the artist's ``gid``.
    """
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a label may have characters that the font lacks
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg ") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style [^>]*>.*?</style>", "", text, flags=re.DOTALL)  # the page's policy forbids it
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    # Before the ids get their prefix: artists are looked up by their own.
    for gid, tip in (tips or {}).items():
        text = text.replace(f'<g id="{gid}">', f'<g id="{gid}"><title>{escape(clean(tip))}</title>')
    text = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(xlink:href="|url\()#', rf"\1#{name}-", text)
    text = _LONG_NUMBER.sub(r"\1", text)
    for colour, variable in _THEME.items():
        text = text.replace(f": {colour}", f": var({variable})")
    start = f'<svg role="img" aria-label="{escape(clean(alt))}" stroke-linejoin="round" stroke-linecap="butt" '
    return Markup(start + re.sub(r"\n\s*", "\n", text.removeprefix("<svg ")))  # clean texts are escaped by matplotlib
