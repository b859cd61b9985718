"""The docs site's reference names the public API; that every page is in the navigation is for `make docs` to say."""

import re

from code_blocks import ROOT
from mkdocs.config import load_config

import lowrank_bench


def test_the_reference_has_every_public_name_once() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: lowrank_bench\.(\w+)$", page, re.M)) == lowrank_bench.__all__


def test_the_package_is_laid_out_before_mkdocstrings_looks_for_it() -> None:
    """Else it searches the whole checkout the first time, `.venv` included."""
    config = load_config(str(ROOT / "mkdocs.yml"))
    first, *later = config.plugins.events["config"]
    assert (first.__name__, first.__code__.co_filename) == ("on_config", str(ROOT / "docs" / "site_hooks.py"))
    assert any("mkdocstrings" in method.__module__ for method in later)
