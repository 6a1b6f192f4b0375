"""A real headless browser that records errors and requests."""

import contextlib
import shutil
from urllib.parse import urlsplit

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# WebGL without a GPU, to draw the front in three dimensions; no sandbox, because root cannot use it.
ARGUMENTS = ["--no-sandbox", "--enable-unsafe-swiftshader"]


@contextlib.contextmanager
def chromium():
    """Start the browser, or skip the test."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


class Watched:
    """A tab that records its errors and the hosts it requests from."""

    def __init__(self, browser, width=1280, scheme="light", **context):
        self.context = browser.new_context(
            viewport={"width": width, "height": 844}, color_scheme=scheme, **context
        )
        self.tab = self.context.new_page()
        self.errors, self.hosts = [], set()
        self.tab.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    def cut_off(self):
        """Return by how many pixels the page is wider than its window."""
        return self.tab.evaluate("document.documentElement.scrollWidth - innerWidth")
