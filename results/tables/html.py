"""A table as HTML: works without scripts, sorts with a page's."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import jinja2
from markupsafe import Markup

from .escape import harmless
from .names import breakable, whole
from .table import Table

_TEMPLATES = Path(__file__).parent / "templates"


def to_html(table: Table) -> Markup:
    """Return a table with its caption and notes; it needs an id. ``page.js`` makes its headings sort buttons."""
    return Markup(_template().render(table=table))


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"breakable": breakable, "whole": whole}
    return environment.get_template("table.html")
