"""Self-contained pages: one file, no network request, text always escaped, equal input gives equal bytes."""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ..tables.escape import harmless
from ..tables.html import to_html
from ..tables.names import breakable, whole

TEMPLATES = Path(__file__).parent / "templates"


def render_page(folder: Path, template: str, *, style: str = "", script: str = "", **values: Any) -> str:
    """Render a template that extends ``base.html``.

    Every value is escaped unless it is `Markup`, and control or bidi characters become replacement characters (line
    breaks and tabs stay). The page's Content-Security-Policy allows nothing but the style and script that are in it.

    Args:
        folder: the caller's templates; ``base.html`` and ``parts.html`` (macros) are found beside them.
        template: name of a file in it.
        style, script: CSS and JavaScript of this page, behind the common ones.
        values: what the template uses; ``title`` is required.
    """
    style, script = _read_text("page.css") + style, _read_text("page.js") + script
    for text, end in ((style, "</style"), (script, "</script")):
        if end in text.lower():
            raise ValueError(f"'{end}' would end the element that it is in")
    policy = "; ".join(
        [
            "default-src 'none'",
            f"style-src-elem 'sha256-{_sha256(style)}'",
            "style-src-attr 'unsafe-inline'",  # pictures set widths and strokes this way; values are ours alone
            f"script-src 'sha256-{_sha256(script)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    page = {"style": Markup(style), "script": Markup(script), "policy": Markup(policy)}
    return environment(folder).get_template(template).render(page=page, **values)


@lru_cache(maxsize=8)
def environment(folder: Path) -> jinja2.Environment:
    """Return the Jinja environment of a folder of templates: escaping is on, and a missing value is an error."""
    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=harmless,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    jinja.filters |= {"table": to_html, "breakable": breakable, "whole": whole}
    return jinja


@lru_cache(maxsize=8)
def _read_text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
