"""What mkdocs does before it builds the site.

It lays out the package for the API reference, turns formulas into MathML, makes a page of the tutorial notebook, and
begins lists as GitHub does.

A formula is a fenced block of LaTeX with the language ``math``, which GitHub renders too. MathML needs no script and no
connection; browsers of 2023 and later draw it. The notebook becomes Markdown with the outputs that it was committed
with: mkdocs-jupyter's page was tried, brings JupyterLab's 0.7 MB of styles, and its colours have too little contrast.
"""

from __future__ import annotations

import json
import re
import shutil
from html import escape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

PARTS = ("cli", "papers", "results", "runners", "evals", "methods", "models", "records", "foundation")
NOTEBOOK, NOTEBOOK_PAGE = "tutorial.ipynb", "tutorial.md"


@event_priority(100)
def on_config(config: Any) -> Any:
    """Add the fence for formulas, and link the package's parts alone into ``build/docs-package``.

    Beside them in the root are ``.venv`` and ``runs``, which mkdocstrings would search too, and did in a new
    checkout, where the folder was missing when it looked for its paths. So this comes before the plugins.
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


def on_files(files: Any, config: Any) -> Any:
    """Add the notebook's page; the notebook itself can be downloaded beside it."""
    text = notebook_page((Path(config.docs_dir) / NOTEBOOK).read_text(encoding="utf-8"))
    files.append(File.generated(config, NOTEBOOK_PAGE, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to the notebook to its page, and put an empty line between a paragraph and the list behind it.

    GitHub needs neither: it shows notebooks, and a list there needs no empty line as it does in Python-Markdown.
    """
    if page.file.src_uri != NOTEBOOK_PAGE:
        markdown = markdown.replace(f"]({NOTEBOOK})", f"]({NOTEBOOK_PAGE})")
    lines: list[str] = []
    fenced = in_paragraph = False
    for line in markdown.split("\n"):
        item = bool(re.match(r"(?:- |\d+\. )", line))
        if item and in_paragraph and not fenced:
            lines.append("")
        fenced ^= line.lstrip().startswith("```")
        if item or not line.strip():
            in_paragraph = False
        elif not lines or not lines[-1].strip():  # else it goes on with what is above it, be it a paragraph or an item
            in_paragraph = not re.match(r"[\s#|<]", line)
        lines.append(line)
    return "\n".join(lines)


def format_formula(source: str, *_: Any, **__: Any) -> str:
    """Return a formula as MathML, focusable because a narrow window scrolls it."""
    label = escape(" ".join(source.split()), quote=True)
    return (
        f'<div class="formula" role="group" tabindex="0" aria-label="{label}">{convert(source, display="block")}</div>'
    )


def notebook_page(text: str) -> str:
    """Return a notebook (its JSON) as Markdown: code as it is, outputs as text or picture."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if picture := data.get("image/png"):
                parts.append(f"![What the code above draws](data:image/png;base64,{picture.strip()})")
            elif shown := "".join(data.get("text/plain", output.get("text", ""))).strip("\n"):
                parts.append(f"```text\n{shown}\n```")
    parts.append(f"This page is the notebook [{NOTEBOOK}]({NOTEBOOK}) with its outputs; a test executes it.")
    return "\n\n".join(parts) + "\n"
