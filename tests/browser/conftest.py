"""Pages in a real headless Chromium: what a reader sees, hears and can reach."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

DESKTOP = {"width": 1280, "height": 900}


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A running browser; the tests fail where there is none, because a page that nobody opened is not tested."""
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert executable, "no chromium; install it: sudo apt-get install chromium"
    with sync_playwright() as playwright:
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"] if root else [])
        yield browser
        browser.close()


class OpenPage:
    """A page from a file, and all that went on while it was used.

    Attributes:
        page: playwright's page.
        complaints: console messages of any kind, errors of scripts, violations of the page's security policy.
        requests: addresses that were asked for, the file itself left out.
    """

    def __init__(self, page: Page, path: Path) -> None:
        self.page, self.complaints, self.requests = page, [], []
        address = path.resolve().as_uri()
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: request.url == address or self.requests.append(request.url))
        page.goto(address)

    def violations(self) -> list[str]:
        """Return what axe finds wrong: one text per rule with the first element that breaks it."""
        broken_rules = Axe().run(self.page).response["violations"]
        return [f"{v['id']}: {v['help']} ({v['nodes'][0]['html'][:200]})" for v in broken_rules]

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def check_quiet(self) -> None:
        """Fail if the page said or asked for anything."""
        assert self.complaints == []
        assert self.requests == []


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[Callable[..., OpenPage]]:
    """Open a file: ``open_page(path, size={"width": 390, "height": 780}, dark=False, scripts=True)``."""
    contexts = []

    def opened(path: Path, size: dict[str, int] = DESKTOP, dark: bool = False, scripts: bool = True) -> OpenPage:
        scheme = "dark" if dark else "light"
        context = chromium.new_context(viewport=size, color_scheme=scheme, java_script_enabled=scripts)
        contexts.append(context)
        return OpenPage(context.new_page(), path)

    yield opened
    for context in contexts:
        context.close()
