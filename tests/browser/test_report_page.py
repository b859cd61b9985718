"""A report in a real browser: a real run, with hostile completions in its samples."""

import json
import shutil

import pytest
from sealing import seal

from lowrank_bench.results.report.gather import gather
from lowrank_bench.results.report.page import report_page
from lowrank_bench.runners.plan import make_plan

PHONE = {"width": 390, "height": 780}
HOSTILE = "</pre></script><script>document.title = 'bad'</script><img src=http://example.org/x onerror=alert(2)>\u202e"
OPEN = "document.querySelectorAll('details').forEach((part) => { part.open = true; })"


@pytest.fixture(scope="module")
def page_file(finished, tmp_path_factory):
    """The report of a finished sweep whose models answer with HTML."""
    root = tmp_path_factory.mktemp("page") / "runs"
    shutil.copytree(finished.execution.out, root)
    for path in (root / "stages").glob("evaluate-*/samples.jsonl"):
        lines = [json.loads(line) | {"completion": HOSTILE} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        seal(path.parent)
    file = root / "report.html"
    file.write_text(report_page(gather(root / make_plan(finished).name)), encoding="utf-8")
    return file


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("phone", [False, True])
def test_accessible_quiet_and_within_the_window(page_file, open_page, dark, phone):
    opened = open_page(page_file, size=PHONE, dark=dark) if phone else open_page(page_file, dark=dark)
    assert opened.overflow() <= 0
    opened.page.evaluate(OPEN)
    assert opened.overflow() <= 0
    assert opened.violations() == []
    opened.check_quiet()


def test_every_section_has_what_it_promises(page_file, open_page):
    page = open_page(page_file).page
    titles = page.locator("main h2").all_text_contents()
    assert titles == page.locator("nav a").all_text_contents()
    assert titles[:3] == ["The question", "What came out", "The numbers"]
    assert {"Rank per layer", "Spectra", "Failures", "What was run on what"} <= set(titles)
    for index in range(page.locator("figure").count()):
        figure = page.locator("figure").nth(index)
        assert figure.locator("figcaption").inner_text()
        svg = figure.locator("svg").first
        named = svg.get_attribute("aria-label") or svg.get_attribute("aria-labelledby")
        assert svg.get_attribute("role") == "img"
        assert named
        assert svg.bounding_box()["height"] > 100
    assert page.locator("figure").count() >= 6


def test_ids_are_unique_and_links_lead_somewhere(page_file, open_page):
    page = open_page(page_file).page
    ids = page.evaluate("Array.from(document.querySelectorAll('[id]'), (element) => element.id)")
    assert len(ids) == len(set(ids))
    targets = page.evaluate("Array.from(document.querySelectorAll('a[href^=\"#\"]'), (a) => a.hash.slice(1))")
    assert set(targets) <= set(ids)
    used = page.evaluate(
        "Array.from(document.querySelectorAll('use'), (u) => "
        "(u.getAttribute('href') || u.getAttribute('xlink:href')).slice(1))"
    )
    assert set(used) <= set(ids)


def test_hostile_completions_are_shown_as_text(page_file, open_page):
    opened = open_page(page_file)
    opened.page.evaluate(OPEN)
    shown = opened.page.locator(".example pre").all_text_contents()
    assert HOSTILE.replace("\u202e", "\ufffd") in shown
    assert opened.page.title().startswith("Report: ")
    assert opened.page.locator("img").count() == 0
    opened.check_quiet()


def test_tables_sort(page_file, open_page):
    page = open_page(page_file).page
    table = page.locator("#results-0")
    table.get_by_role("button", name="method").click()
    first = table.locator("tbody th").all_text_contents()
    table.get_by_role("button", name="method").click()
    second = table.locator("tbody th").all_text_contents()
    assert first[0] == second[0] == "uncompressed (finetuned)"  # pinned
    assert first[1:] == second[1:][::-1]


def test_complete_without_scripts(page_file, open_page):
    opened = open_page(page_file, scripts=False)
    assert opened.page.locator("main h2").count() >= 8
    opened.check_quiet()
