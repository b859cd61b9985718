"""The report as one HTML page that needs nothing else."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from ..pages.inline import inline_svg, page_style
from ..pages.parts import Figure
from ..pages.shell import render_page
from ..tables.table import Table
from .blocks import Block, Bullets, Code, Examples, Fold, Heading, Listing, Picture
from .data import Report
from .document import sections

TEMPLATES = Path(__file__).parent / "templates"
_NAMES: dict[type, str] = {
    **{str: "text", Bullets: "bullets", Listing: "listing", Code: "code", Table: "table"},
    **{Picture: "picture", Examples: "examples", Heading: "heading", Fold: "fold"},
}


def report_page(report: Report) -> str:
    """Return the page; equal reports give equal text."""
    with page_style():
        parts = [(section, [_drawn(block) for block in section.blocks]) for section in sections(report)]
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    return render_page(TEMPLATES, "report.html", style=css, title=f"Report: {report.title}", parts_of_page=parts)


def _drawn(block: Block) -> tuple[str, object]:
    """Return a block's kind and what the template shows of it."""
    kind = _NAMES[type(block)]
    if isinstance(block, Picture):
        drawn = block.draw()
        svg = drawn if isinstance(drawn, Markup) else inline_svg(drawn, block.name, block.alt)
        return kind, Figure(svg, block.caption, block.data)
    if isinstance(block, Fold):
        return kind, (block.summary, [_drawn(inner) for inner in block.blocks])
    return kind, block
