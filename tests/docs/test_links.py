"""Every link between pages leads to a file that is there, and to a heading that it has."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
from code_blocks import ROOT
from markdown_it import MarkdownIt

FOLDERS = ("cli", "papers", "results", "runners", "evals", "methods", "models", "records", "foundation")
FOLDERS += ("tests", "perf", "docs", "measurements")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    """Return the names that GitHub gives to a page's headings."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    titles = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page: Path) -> list[str]:
    """Return what a page links to in this repository, code left out."""
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(page.read_text(encoding="utf-8"))
    inner = [child for token in tokens for child in token.children or ()]
    targets = [str(child.attrs.get("href") or child.attrs.get("src") or "") for child in inner]
    return [target for target in targets if target and not re.match(r"[a-z]+:", target)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}, which is not there"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}, which has no such heading"


def test_contributing_leads_to_a_guide_for_every_part() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = dict(re.findall(r"\| an? (\w+) \| [^|]* \| ([^|]*) \|", text))
    assert set(rows) == {"method", "policy", "recovery", "benchmark", "task", "engine", "paper"}
    assert all("](docs/" in row for row in rows.values())


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_the_files_and_folders_that_are_named_are_there(page: str) -> None:
    tree = [f"/{path.relative_to(ROOT)}" for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    tree += [f"/{folder}" for folder in FOLDERS]
    for path in re.findall(r"`([a-z][\w/]*(?:\.py|/))`", (ROOT / page).read_text()):
        if "NAME" not in path and not path.startswith("runs/"):
            assert any(known.endswith(f"/{path.rstrip('/')}") for known in [*tree, "/__init__.py"]), path
