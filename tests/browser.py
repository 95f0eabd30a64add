"""A headless Chromium for tests of pages: nothing reaches a network, and what a page complains of fails."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, CDPSession, Locator, Page, Route, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
HANGS_MS = 120_000
"""Milliseconds after which nothing more is to be expected; a busy machine takes ten seconds to read plotly.js."""
Opened = Callable[..., Page]
__all__ = ["Browser", "CDPSession", "Locator", "Opened", "Page", "chromium", "draw", "offline", "started"]


def chromium() -> str | None:
    """Path of an installed Chromium."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def started() -> Iterator[Browser]:
    """A running Chromium; the test is skipped where none is installed (.ci/run installs one)."""
    path = chromium()
    if path is None:
        pytest.skip(f"needs one of {', '.join(NAMES)}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def offline(browser: Browser) -> Iterator[Opened]:
    """``opened(path, "#pick=…", width=400, scheme="dark")`` is the page of a file; at the end no page has complained or
    asked for anything but its file."""
    complaints: list[str] = []
    contexts: list[BrowserContext] = []

    def refuse(route: Route) -> None:
        if route.request.url.startswith("file:"):
            route.continue_()
        else:
            complaints.append(f"asked for {route.request.url}")
            route.abort()

    def opened(path: Path, address: str = "", *, width: int = 1280, scheme: str = "light") -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        contexts.append(context)
        context.set_offline(True)
        context.route("**/*", refuse)
        page = context.new_page()
        page.set_default_timeout(HANGS_MS)
        page.on("console", lambda words: complaints.append(words.text) if words.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path.resolve().as_uri() + address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def draw(page: Page) -> int:
    """Draw every plot, as scrolling past it would; return how many there are."""
    page.evaluate("Promise.all(all('.plot:not(.drawn)').map(redraw))")
    count: int = page.evaluate("all('.plot').filter((box) => box.querySelector('.main-svg')).length")
    assert page.evaluate("all('.plot').length") == count
    return count
