"""A real Chromium, driven by Playwright, that fails on what a page must not do: console errors, exceptions, requests that leave it.

Without Playwright or a Chromium on the path a test skips and says so; with ``MS4_REQUIRE_BROWSER=1`` it fails instead.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """Path of a Chromium, where there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def require_browser() -> str:
    """The path of Chromium; skips the calling test, or fails it where a browser is required, when there is none."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        reason = "playwright is not installed (pip install playwright)"
    else:
        path = find_chromium()
        if path is not None:
            return path
        reason = f"there is no Chromium on the path ({', '.join(NAMES)})"
    if os.environ.get("MS4_REQUIRE_BROWSER") == "1":
        pytest.fail(f"MS4_REQUIRE_BROWSER=1, but {reason}")
    pytest.skip(reason)


@contextlib.contextmanager
def chromium(path: str) -> Iterator[Browser]:
    """A headless browser."""
    from playwright.sync_api import sync_playwright

    # Chromium's own sandbox refuses to start for root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=[*arguments, "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Watched:
    """A page with what it did: console messages of kind error or warning, exceptions, addresses that it asked for."""

    page: Page
    messages: list[str] = field(default_factory=list)
    exceptions: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def complaints(self, home: str) -> list[str]:
        """Everything that a page may not do; ``home`` begins the addresses that are its own."""
        strangers = [url for url in self.requests if not url.startswith((home, "data:"))]
        return [*self.messages, *self.exceptions, *(f"request to {url[:200]}" for url in strangers)]


@contextlib.contextmanager
def watched_page(browser: Browser, **options: Any) -> Iterator[Watched]:
    """A new page in a context of its own (nothing remembered); options as of Playwright's ``new_context``."""
    context = browser.new_context(**({"viewport": {"width": 1400, "height": 900}} | options))
    watched = Watched(context.new_page())
    watched.page.set_default_timeout(20_000)
    watched.page.on("console", lambda message: watched.messages.append(message.text) if message.type in ("error", "warning") else None)
    watched.page.on("pageerror", lambda error: watched.exceptions.append(f"{error}"))
    watched.page.on("request", lambda request: watched.requests.append(request.url))
    try:
        yield watched
    finally:
        context.close()


def board_address(board: Any, *path: str, **query: str) -> str:
    """The address of a page of a board, after the number sign."""
    text = "&".join(f"{key}={value}" for key, value in query.items())
    return "#/task/" + "/".join([board.board_id[:12], *path]) + (f"?{text}" if text else "")


def go(page: Page, address: str, selector: str) -> None:
    """Go to an address of the page that is open, and wait for what it shows."""
    page.evaluate("hash => { location.hash = hash }", address)
    page.wait_for_selector(selector)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A plain web server of a folder on this machine; yields its address, which ends in a slash."""
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
