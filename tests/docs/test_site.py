"""The docs site's reference names the public API; that every page is in the navigation is for `make docs` to say."""

import re

from code_blocks import ROOT

import lowrank_bench


def test_the_reference_has_every_public_name_once() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: lowrank_bench\.(\w+)$", page, re.M)) == lowrank_bench.__all__
