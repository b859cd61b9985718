"""What mkdocs does before it builds the site: lay out the package for the API reference, and turn formulas into MathML.

A formula is a fenced block of LaTeX with the language ``math``, which GitHub renders too. MathML needs no script and no
connection; browsers of 2023 and later draw it.
"""

from __future__ import annotations

import shutil
from html import escape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

PARTS = ("cli", "papers", "results", "runners", "evals", "methods", "models", "records", "foundation")


def on_config(config: Any) -> Any:
    """Add the fence for formulas, and link the package's parts alone into ``build/docs-package``.

    Beside them in the root are ``.venv`` and ``runs``, which mkdocstrings would search too.
    """
    root = Path(config.config_file_path).parent
    package = root / "build" / "docs-package" / "lowrank_bench"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for part in ("__init__.py", *PARTS):
        (package / part).symlink_to(root / part)
    fence = {"name": "math", "class": "formula", "format": format_formula}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def format_formula(source: str, *_: Any, **__: Any) -> str:
    """Return a formula as MathML, focusable because a narrow window scrolls it."""
    label = escape(" ".join(source.split()), quote=True)
    return f'<div class="formula" role="group" tabindex="0" aria-label="{label}">{convert(source, display="block")}</div>'
