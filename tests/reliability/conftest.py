"""What the tests of the leaderboard in a browser share."""

from __future__ import annotations

import pytest
from support.browser import chromium, require_browser, watched_page
from support.sites import MODELS, SIZES, aime_task, code_task, documents_task, fill_store


@pytest.fixture(scope="module")
def browser():
    """Chromium. Of a module and not of the session: while it is open, no other test of this process could run an event loop."""
    with chromium(require_browser()) as opened:
        yield opened


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """A folder with a site of three tasks and four models, its boards, and its store."""
    from ms4_evals.leaderboard.collect import collect_boards
    from ms4_evals.leaderboard.publish import publish

    require_browser()
    folder = tmp_path_factory.mktemp("site")
    store = folder / "r.sqlite"
    tasks = [aime_task(*SIZES["aime"]), code_task(*SIZES["code"]), documents_task(*SIZES["documents"])]
    fill_store(store, tasks, MODELS[:4], scale=0.05)
    boards = collect_boards([store])
    publish(boards, folder / "out", title="Four models")
    return folder / "out", boards, store


@pytest.fixture
def opened(browser, site):
    """The page from the folder; at the end nothing may have been said, thrown, or asked of others."""
    home = site[0].as_uri() + "/"
    with watched_page(browser) as watched:
        watched.page.goto(home + "index.html")
        watched.page.wait_for_selector("tbody tr")
        yield watched.page
        assert watched.complaints(home) == []
