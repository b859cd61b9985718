"""The README is short and names every method; that its figures are measured is for test_measurements.py to say."""

import re

from code_blocks import ROOT

from lowrank_bench.methods.registry import methods

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_read_in_a_minute() -> None:
    assert len(README.splitlines()) <= 120


def test_every_method_has_a_line() -> None:
    shown = re.findall(r"^\| \[([\w-]+)\]\(docs/methods/\1\.md\) \| (.+) \|$", README, re.M)
    listed = [(row.name, row.summary.strip().rstrip(".")) for row in methods.listings() if row.origin == "built in"]
    assert shown == listed
