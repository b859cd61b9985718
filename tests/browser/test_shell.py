"""The common shell of pages: escaping, sorting, security policy, accessibility."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_bench.results.pages.shell import render_page
from lowrank_bench.results.tables.table import Column, Field, Table

TEMPLATE = """{% extends "base.html" %}{% import "parts.html" as parts %}
{% block main %}<h2>Part</h2>{{ view | table }}
{% call parts.details("More") %}<p id="inside" tabindex="-1">{{ text }}</p>{% endcall %}
<p><a href="#inside">to the inside</a></p>{{ parts.json("data", [text]) }}{% endblock %}
"""
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \u202e \u2028 <!-- javascript:alert(3)"
ROWS = [
    [Field("b", to="inside"), Field("10.0", 10.0, "[9, 11]", "1"), "3"],
    [Field(HOSTILE), Field("∞", float("inf")), "30"],
    [Field("a"), Field("9.5", 9.5), "4"],
    [Field("none"), Field(""), ""],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("templates")
    (folder / "page.html").write_text(TEMPLATE)
    return folder


def render(folder, text=HOSTILE, **values):
    columns = [Column("name"), Column("value", "number"), Column("n", "number")]
    view = Table("Some numbers", columns, ROWS, "table", ["r1", "r2", "r3", "r4"])
    return render_page(folder, "page.html", title="A page", view=view, text=text, **values)


@pytest.fixture
def page_file(folder, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(render(folder), encoding="utf-8")
    return path


def names(page):
    return [text[:1] for text in page.locator("#table tbody th").all_text_contents()]


def test_headings_sort_both_ways_and_say_so(page_file, open_page):
    opened = open_page(page_file)
    page = opened.page
    head = page.locator("#table thead th").nth(1)
    page.get_by_role("button", name="value").click()
    assert (names(page), head.get_attribute("aria-sort")) == (["a", "b", "<", "n"], "ascending")
    page.get_by_role("button", name="value").press("Enter")  # what is empty stays last
    assert (names(page), head.get_attribute("aria-sort")) == (["<", "b", "a", "n"], "descending")
    page.get_by_role("button", name="name").click()
    assert head.get_attribute("aria-sort") is None
    assert names(page) == ["<", "a", "b", "n"]
    opened.check_quiet()


def test_hostile_text_stays_text(page_file, open_page):
    opened = open_page(page_file)
    assert opened.page.evaluate("JSON.parse(document.getElementById('data').textContent)[0]") == HOSTILE
    assert opened.page.locator("#inside").text_content() == HOSTILE.replace("\u202e", "\ufffd").replace(
        "\u2028", "\ufffd"
    )
    assert opened.page.locator("img").count() == 0
    opened.check_quiet()


def test_injected_elements_would_be_stopped_by_the_policy(page_file, open_page):
    opened = open_page(page_file)
    opened.page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.bad = 1'; document.body.append(s);"
        "const i = new Image(); i.src = 'https://example.org/x.png'; document.body.append(i); }"
    )
    opened.page.wait_for_timeout(200)
    assert opened.page.evaluate("window.bad") is None
    assert len(opened.complaints) == 2
    assert all("Content Security Policy" in text for text in opened.complaints)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("scripts", [True, False])
def test_accessible_with_and_without_scripts_in_light_and_dark(page_file, open_page, dark, scripts):
    opened = open_page(page_file, dark=dark, scripts=scripts)
    assert names(opened.page) == ["b", "<", "a", "n"]
    if scripts:
        assert opened.violations() == []
    opened.check_quiet()


def test_a_link_into_a_closed_part_opens_it(page_file, open_page):
    page = open_page(page_file).page
    assert not page.locator("#inside").is_visible()
    page.get_by_role("link", name="to the inside").click()
    assert page.locator("#inside").is_visible()
    assert page.evaluate("document.activeElement.id") == "inside"


@settings(deadline=None)
@given(st.text())
def test_any_text_gives_one_page_with_its_own_elements_only(folder, text):
    html = render(folder, text)
    assert html.count("<script") == 2  # the page's own, and its data
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f\x7f]", html)
    assert html == render(folder, text)
