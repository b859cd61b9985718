"""The docs site in a browser without a connection: search, formulas, dark mode, narrow windows, accessibility."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from code_blocks import ROOT
from playwright.sync_api import Browser, Page, Route

START, METHOD, API, REPORT, TUTORIAL = PAGES = (
    "index.html",
    "methods/svd-llm.html",
    "api.html",
    "report.html",
    "tutorial.html",
)

PATIENCE = 150_000
"""Milliseconds that a busy machine may take to load a page or to search in it."""


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly from the checkout."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[str]:
    """The address of the site, served on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


class Visit:
    """A page of the site, and the addresses elsewhere that it asked for, none of which is reached."""

    def __init__(self, browser: Browser, site: str, name: str, width: int, dark: bool = False) -> None:
        scheme = "dark" if dark else "light"
        self.context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        self.context.set_default_timeout(PATIENCE)
        self.page: Page = self.context.new_page()
        self.elsewhere: list[str] = []

        def handle(route: Route) -> None:
            if route.request.url.startswith((site, "data:", "blob:")):
                route.continue_()
            else:
                self.elsewhere.append(route.request.url)
                route.abort()

        self.page.route("**/*", handle)
        self.page.goto(f"{site}{name}")
        self.page.wait_for_load_state("networkidle")

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def violations(self) -> list[str]:
        """Return what axe finds wrong in what we write; the theme's own frame is not ours to mend."""
        context = {"include": [["article"]], "exclude": [[".md-code__nav"]]}
        rules = {
            "scrollable-region-focusable": {"enabled": False}
        }  # browsers give boxes that scroll the focus themselves
        response = Axe().run(self.page, context=context, options={"rules": rules}).response
        return [f"{v['id']}: {v['help']} ({v['nodes'][0]['html'][:200]})" for v in response["violations"]]


@pytest.fixture
def visit(chromium: Browser, site: str) -> Iterator[partial]:
    """Open a page of the site: ``visit(name, width, dark=False)``."""
    visits: list[Visit] = []

    def opened(name: str, width: int = 1200, dark: bool = False) -> Visit:
        visits.append(Visit(chromium, site, name, width, dark))
        return visits[-1]

    yield opened
    for visited in visits:
        assert visited.elsewhere == []
        visited.context.close()


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [1200, 390])
def test_pages_fit_their_window_and_are_accessible(visit: partial, name: str, width: int) -> None:
    visited = visit(name, width)
    assert visited.overflow() == 0
    assert visited.page.locator("html").get_attribute("lang") == "en"
    assert visited.page.title()
    assert visited.page.locator("article h1").count() == 1
    assert visited.violations() == []


@pytest.mark.parametrize("name", [START, METHOD, TUTORIAL])
def test_pages_are_accessible_in_dark_colours(visit: partial, name: str) -> None:
    visited = visit(name, dark=True)
    assert visited.page.locator("body").get_attribute("data-md-color-scheme") == "slate"
    assert visited.violations() == []


def check_search(page: Page) -> None:
    page.locator("input.md-search__input").press_sequentially("Cholesky")  # the page searches when a key comes up
    result = page.locator(".md-search-result__link").first
    result.wait_for()
    result.click()
    page.wait_for_load_state("networkidle")
    assert "Cholesky" in page.locator("article").inner_text()


def test_search_leads_to_a_page_that_has_the_word(visit: partial) -> None:
    check_search(visit(START).page)


@pytest.mark.parametrize("name", [START, METHOD])
def test_search_needs_no_server(chromium: Browser, folder: Path, name: str) -> None:
    visited = Visit(chromium, f"{folder.as_uri()}/", name, 1200)
    check_search(visited.page)
    assert visited.elsewhere == []
    visited.context.close()


def test_the_switch_changes_colours_and_is_remembered(visit: partial) -> None:
    page = visit(START).page

    def background() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = background()
    page.locator("label[title='Dark mode']").click()
    dark = background()
    assert light != dark
    page.reload()
    assert background() == dark


def test_formulas_are_drawn(visit: partial) -> None:
    page = visit(METHOD).page
    sizes = page.evaluate(
        "Array.from(document.querySelectorAll('article math'), (m) => [m.getBoundingClientRect().width, "
        "m.getBoundingClientRect().height, getComputedStyle(m).display])"
    )
    assert sizes
    assert all(width > 200 and height > 20 and display == "block math" for width, height, display in sizes)
    drawn = page.evaluate(  # an exponent is above its base
        "(() => { const [base, raised] = document.querySelector('article msup').children; "
        "return base.getBoundingClientRect().bottom - raised.getBoundingClientRect().bottom; })()"
    )
    assert drawn > 0
    text = page.locator("article math").first.text_content()
    assert "min" in text
    assert not set("\\&{}") & set(text)


def test_all_pages_fit_a_phone(visit: partial, site: str) -> None:
    visited, wide = visit(START, 390), {}
    for source in sorted((ROOT / "docs").rglob("*.md")):
        name = source.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        visited.page.goto(site + name.replace("README.html", "index.html"), wait_until="domcontentloaded")
        if visited.overflow():
            wide[name] = visited.overflow()
    assert wide == {}


def test_lists_behind_a_paragraph_are_lists(visit: partial) -> None:
    items = visit(METHOD).page.locator("article li").all_inner_texts()
    assert any(item.startswith("The authors take the Cholesky factor") for item in items)
