"""The leaderboard's page in a browser: sorts, filters, leads to provenance; quiet, accessible, fits a phone."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_records import make_record, make_sweep
from playwright.sync_api import expect

from lowrank_bench.records.files import to_frame
from lowrank_bench.results.leaderboard.boards import boards
from lowrank_bench.results.leaderboard.page import to_html
from lowrank_bench.results.leaderboard.ranking import Scores

EVIL = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
PHONE = {"width": 390, "height": 780}
METHODS = ("bs", "fwsvd", "svd", "svd-llm")


@pytest.fixture(scope="module")
def all_boards():
    """Two models, two tasks, a perplexity, speeds, a submission with a hostile name; samples for accuracies."""
    sweeps = make_sweep(METHODS) + make_sweep(METHODS, model="llama2-13b", model_sha256="13" * 32)
    sweeps += make_sweep(METHODS, language=True)
    theirs = [make_record(label=EVIL, method="new", value=0.41, stage_key="theirs", options='{"name":"<b>x</b>"}')]
    parts = [to_frame(sweeps).assign(origin=""), to_frame(theirs).assign(origin="submitted 12ab")]
    frame = pd.concat(parts, ignore_index=True)
    samples = {}
    rng = np.random.default_rng(1)
    for row in frame.itertuples():
        if row.metric == "accuracy" and not row.origin:
            right = rng.permutation(np.arange(row.n) < round(row.value * row.n)) * 1.0
            samples[row.stage_key, row.metric, row.scorer] = Scores(tuple(map(str, range(row.n))), right, True)
    speeds = {
        "speed-vllm-batch1": [30.0 * row.ratio**0.5 if row.origin == "" else float("nan") for row in frame.itertuples()]
    }
    return boards(frame, samples, speeds)


@pytest.fixture(scope="module")
def page_file(all_boards, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "leaderboard.html"
    path.write_text(to_html(all_boards, submissions=["submitted 12ab"]), encoding="utf-8")
    return path


@pytest.fixture
def opened(page_file, open_page):
    opened = open_page(page_file)
    yield opened
    opened.check_quiet()


def board(opened, text):
    return opened.page.locator("section.board").filter(has=opened.page.get_by_role("heading", name=text)).first


def column(section, position):
    """The numbers of a column of the ranks in the order on the page; None where a cell is empty."""
    cells = section.locator("table[id$='-ranks'] tbody tr:visible").locator(f"td:nth-child({position + 1})")
    return [
        float(cell.get_attribute("data-value")) if cell.get_attribute("data-value") else None for cell in cells.all()
    ]


def test_columns_sort_by_value_both_ways(opened):
    section = board(opened, "llama2-7b · math")
    head = section.locator("thead th").nth(3)
    for direction in ("descending", "ascending"):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == direction
        values = [value for value in column(section, 3) if value is not None]
        assert values == sorted(values, reverse=direction == "descending")
        assert len(values) == len(METHODS)
        assert column(section, 3)[len(METHODS) :] == [None]  # the submission has another ratio only


def test_perplexities_sort_the_best_first(opened):
    section = board(opened, "language")
    head = section.locator("thead th").nth(2)
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"


def test_sorting_by_keyboard(opened):
    section = board(opened, "llama2-7b · math")
    button = section.get_by_role("button", name="method")
    button.focus()
    opened.page.keyboard.press("Enter")
    names = section.locator("table[id$='-ranks'] tbody th").all_text_contents()
    assert [name for name in names if name in METHODS] == sorted(METHODS)


def shown(opened):
    return [s.get_attribute("data-model") + "/" + s.get_attribute("data-task")
            for s in opened.page.locator("section.board:visible").all()]  # fmt: skip


def test_filters_by_model_task_band_method_and_source(opened):
    page, status = opened.page, opened.page.locator("#shown")
    assert shown(opened) == ["llama2-13b/math", "llama2-7b/language", "llama2-7b/math"]

    def choose(name, value, expected):
        page.locator(f"#filter-{name}").select_option(value)
        expect(status).to_contain_text(expected)

    choose("model", "llama2-7b", "2 of 3 boards")
    choose("task", "math", "1 of 3 boards")
    choose("band", "3", "1 of 3 boards, 4 rows")
    section = board(opened, "llama2-7b · math")
    assert section.locator("table[id$='-ranks'] thead th:visible").all_text_contents() == ["method", "3×"]
    choose("band", "", "1 of 3 boards, 5 rows")
    choose("source", "submitted", "1 of 3 boards, 1 rows")
    assert section.locator("table[id$='-ranks'] tbody tr:visible th").text_content().startswith(EVIL[:30])
    page.get_by_role("button", name="Show all").click()
    expect(status).to_contain_text("3 of 3")
    page.get_by_label("Method contains").fill("SVD-L")
    expect(status).to_contain_text("3 rows")
    page.get_by_label("Method contains").fill("nobody")
    expect(status).to_contain_text("0 of 3")
    assert shown(opened) == []
    assert status.get_attribute("role") == "status"


def test_every_value_leads_to_its_provenance(opened, all_boards):
    section = board(opened, "llama2-7b · math")
    link = section.locator("table[id$='-ranks'] td a").first
    target = link.get_attribute("href")[1:]
    assert not opened.page.locator(f"#{target}").is_visible()
    link.click()
    row = opened.page.locator(f"#{target}")
    assert row.is_visible()
    assert opened.page.evaluate("document.activeElement.id") == target
    (entry,) = (e for b in all_boards for e in b.entries if e.id == target)
    assert entry.provenance.stage_keys in row.text_content()
    assert section.locator("dl.common").first.text_content().count("000000000000")  # the commit


def test_ties_and_missing_tests_are_described_in_words(opened, all_boards):
    (math,) = (b for b in all_boards if b.table.task == "math" and b.table.model == "llama2-7b")
    marks = {entry.standing.mark for entry in math.entries}
    assert "1" in marks
    assert any(mark.endswith("?") for mark in marks)  # the submission
    section = board(opened, "llama2-7b · math")
    for entry in math.entries:
        cell = section.locator(f"table[id$='-ranks'] a[href='#{entry.id}']").locator("xpath=..")
        assert cell.locator(".mark").text_content() == entry.standing.mark
    assert "no samples" in section.locator("table[id$='-details']").text_content()


def test_curves_and_fronts_are_drawn_with_a_text_alternative(opened):
    section = board(opened, "llama2-7b · math")
    section.get_by_text("Curves and fronts").click() if not section.locator("svg").first.is_visible() else None
    pictures = section.get_by_role("img")
    assert pictures.count() == 3  # ratio, bytes, speed
    assert "Pareto front" in section.locator("figcaption").nth(1).text_content()
    assert "On the front" in pictures.nth(2).get_attribute("aria-label")
    assert pictures.nth(2).locator("text", has_text="tokens/s").count() == 1


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("phone", [False, True])
def test_accessible_and_as_wide_as_the_window(page_file, open_page, phone, dark):
    opened = open_page(page_file, dark=dark, **{"size": PHONE} if phone else {})
    opened.page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    # What is off the screen is not laid out before one scrolls there.
    opened.page.evaluate("document.querySelectorAll('.board').forEach(b => { b.style.contentVisibility = 'visible'; })")
    assert opened.violations() == []
    assert opened.overflow() == 0
    if folder := os.environ.get("LOWRANK_BENCH_SCREENSHOTS"):
        name = f"leaderboard-{'phone' if phone else 'desktop'}-{'dark' if dark else 'light'}.png"
        opened.page.screenshot(path=Path(folder) / name, full_page=True)
    opened.check_quiet()


def test_complete_without_scripts(page_file, open_page, all_boards):
    opened = open_page(page_file, scripts=False)
    page = opened.page
    assert not page.locator("#filters").is_visible()
    assert page.locator("table[id$='-ranks'] td a").count() == sum(len(b.entries) for b in all_boards)
    opened.check_quiet()
