"""The README is short, names every method, and shows no figure that docs/measurements.md does not have."""

import re

from code_blocks import ROOT

from lowrank_bench.methods.registry import methods

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_read_in_a_minute() -> None:
    assert len(README.splitlines()) <= 120


def test_its_results_are_those_of_the_page_with_their_conditions() -> None:
    rows = re.findall(r"^\| .*\[\d[\d.]*, \d[\d.]*\].*$", README, re.M)
    assert len(rows) == 4
    page = (ROOT / "docs" / "measurements.md").read_text(encoding="utf-8").splitlines()
    assert not set(rows) - set(page)


def test_every_method_has_a_line() -> None:
    shown = re.findall(r"^\| \[([\w-]+)\]\(docs/methods/\1\.md\) \| (.+) \|$", README, re.M)
    listed = [(row.name, row.summary.strip().rstrip(".")) for row in methods.listings() if row.origin == "built in"]
    assert shown == listed
