"""Text of other people's files stays text, whatever it is written into."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "·": r"\textperiodcentered{}", "×": r"$\times$", "∞": r"$\infty$"},
    **{"\N{OPEN BOX}": r"\textvisiblespace{}", "Σ": r"$\Sigma$", "−": "$-$"},
    **{"≈": r"$\approx$", "≥": r"$\ge$", "–": "--", "†": r"$\dagger$"},
}


def clean(text: str) -> str:
    """Return text without control characters (a terminal would obey them); each becomes a replacement character."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def inert(text: str) -> str:
    """Return text that a spreadsheet does not run as a formula."""
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") else text


def markdown_text(text: str) -> str:
    """Return text that stays text in Markdown."""
    escaped = "".join(f"\\{c}" if c in "\\`*_{}[]<>#|~$!" else c for c in clean(text))
    return escaped.replace("&", "&amp;")


def latex_text(text: str) -> str:
    """Return text that stays text in LaTeX."""
    return "".join(_LATEX.get(c, c) for c in clean(text))


def harmless(value: Any) -> Any:
    """Return a page's value without control and bidi characters; line breaks and tabs stay. For Jinja's `finalize`."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "\n".join("\t".join(map(clean, line.split("\t"))) for line in value.split("\n"))
