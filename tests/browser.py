"""A headless browser for tests of pages: Debian's Chromium by Playwright's driver, drawing WebGL without a GPU."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_WITHOUT_GPU = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")


@contextmanager
def launched() -> Iterator[Browser]:
    """A browser until the body ends. `make test` installs one where it may; elsewhere the test skips and says so."""
    found = next((path for path in map(shutil.which, _NAMES) if path), None)
    if found is None:
        pytest.skip(f"opens pages, and none of {', '.join(_NAMES)} was found; install one: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=list(_WITHOUT_GPU))
        yield browser
        browser.close()


def complaints_of(page: Page) -> list[str]:
    """A list that grows with every error of the page and every request that leaves this machine or fails."""
    found: list[str] = []
    page.on("console", lambda message: found.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda fault: found.append(str(fault)))
    page.on("requestfailed", lambda request: found.append(f"failed: {request.url}"))
    page.on("request", lambda request: None if _is_local(request.url) else found.append(f"asked {request.url}"))
    return found


def _is_local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "file:", "data:", "blob:"))
