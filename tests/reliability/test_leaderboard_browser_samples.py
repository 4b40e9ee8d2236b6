"""Looking at samples on the leaderboard, in a real headless Chromium: filters, the open sample, addresses, keys."""

from __future__ import annotations

import re
import sqlite3

import pytest
from support.browser import board_address, go, watched_page
from support.sites import SIZES


def count_samples(site, where, board):
    connection = sqlite3.connect(site[2])
    task = board.task.split("_")[0]
    query = f"SELECT count(*) FROM samples s JOIN grades g USING (sample_id) WHERE s.problem_id LIKE '{task}%' AND {where}"
    try:
        return connection.execute(query).fetchone()[0]
    finally:
        connection.close()


@pytest.mark.slow
def test_a_point_leads_to_its_samples(opened, site):
    board = site[1][0]
    opened.locator(".charts figure").first.locator("a.point[aria-label*=', high:']").first.focus()
    opened.keyboard.press("Enter")
    opened.wait_for_selector(".sample-head")
    samples, problems = SIZES["aime"]
    assert opened.inner_text(".browser > .status") == f"{samples * problems} samples of {samples * problems * 2 * 4}"
    assert board.title in opened.inner_text("h1")


@pytest.mark.slow
def test_samples_are_filtered_by_verdict_model_mode_and_text(opened, site):
    board = site[1][1]
    go(opened, board_address(board, "samples"), ".sample-head")
    total = count_samples(site, "1", board)

    def status():
        return opened.inner_text(".browser > .status")

    assert status() == f"{total} samples"
    verdict = opened.get_by_role("combobox", name="Verdict")
    for choice in ("correct", "wrong", "truncated"):
        verdict.select_option(value=choice)
        assert status() == f"{count_samples(site, f'''g.verdict = '{choice}' ''', board)} samples of {total}"
    verdict.select_option(value="disputed")
    disputed = count_samples(site, "g.opinion != 'failed' AND (g.opinion = 'correct') != (g.verdict = 'correct')", board)
    assert disputed > 0
    assert status() == f"{disputed} sample{'s' if disputed > 1 else ''} of {total}"
    verdict.select_option(value="")
    opened.get_by_role("combobox", name="Model").select_option(label="model B, 120B")
    opened.get_by_role("radio", name="none").check(force=True)
    assert status() == f"{total // 8} samples of {total}"
    opened.get_by_role("searchbox", name="Search").fill("abc303")
    assert status() == f"2 samples of {total}"
    assert set(opened.locator(".option-model").all_inner_texts()) == {"model B, 120B"}
    opened.get_by_role("searchbox", name="Search").fill("nothing like this")
    assert status() == f"No sample is like this, of {total}."
    assert opened.inner_text(".pane") == "No sample is open."


def test_an_open_sample_shows_its_texts_and_what_the_grader_noted(opened, site):
    board = site[1][1]
    go(opened, board_address(board, "samples", verdict="wrong", mode="high", order="thinking-down"), ".sample-head")
    connection = sqlite3.connect(site[2])
    row = connection.execute(
        "SELECT s.thinking, s.answer, g.extracted, s.problem_id FROM samples s JOIN grades g USING (sample_id) WHERE g.verdict = 'wrong'"
        " AND s.mode = 'high' AND s.problem_id LIKE 'livecodebench%' ORDER BY s.thinking_chars DESC LIMIT 1"
    ).fetchone()
    connection.close()
    thinking, answer, code, problem = row
    assert problem in opened.inner_text(".sample-head")
    assert opened.locator("pre[aria-label=thinking]").text_content() == thinking
    assert opened.locator("pre[aria-label='final answer']").text_content() == answer
    assert opened.locator("pre[aria-label='read from the answer']").text_content() == code
    assert opened.locator("pre[aria-label=question]").text_content().startswith("You are given an integer N.")
    notes = opened.locator(".notes").inner_text()
    for words in ("class", "expected", "input", "output", "test"):
        assert words in notes


@pytest.mark.slow
def test_a_deep_link_opens_its_sample_and_the_way_back_works(browser, opened, site):
    board = site[1][0]
    go(opened, board_address(board, "samples"), ".sample-head")
    opened.locator(".list").focus()
    for _ in range(7):
        opened.keyboard.press("ArrowDown")
    opened.wait_for_function("() => document.querySelector('.option[aria-selected=true]').id === 'sample-7'")
    opened.wait_for_timeout(400)  # the address follows a moment later
    title, link = opened.inner_text(".sample-head"), opened.url
    with watched_page(browser) as other:
        other.page.goto(link)
        other.page.wait_for_selector(".sample-head")
        assert other.page.inner_text(".sample-head") == title
        assert other.page.locator(".option[aria-selected=true]").get_attribute("id") == "sample-7"
        other.page.goto(re.sub(r"s=[0-9a-f]+", "s=000000", link))
        other.page.reload()
        other.page.wait_for_selector(".sample-head")
        assert "The sample of this address is not among them." in other.page.inner_text(".browser > .status")
    opened.locator(".crumbs a").nth(1).click()
    opened.wait_for_selector("text=Identities in full")
    opened.go_back()
    opened.wait_for_selector(".sample-head")
    assert opened.inner_text(".sample-head") == title


@pytest.mark.slow
def test_keys(opened, site):
    board = site[1][0]
    go(opened, board_address(board, "samples"), ".sample-head")

    def selected():
        return opened.locator(".option[aria-selected=true]").get_attribute("aria-posinset")

    for key in "jjk":
        opened.keyboard.press(key)
    assert selected() == "2"
    opened.locator(".list").focus()
    for key, place in (("End", str(2 * 12 * 2 * 4)), ("Home", "1"), ("ArrowDown", "2"), ("ArrowUp", "1"), ("ArrowUp", "1")):
        opened.keyboard.press(key)
        assert selected() == place
        active = opened.locator(".list").get_attribute("aria-activedescendant")
        assert opened.locator(f"#{active}").get_attribute("aria-posinset") == place
    opened.keyboard.press("/")
    assert opened.evaluate("document.activeElement.id") == "search"
    opened.keyboard.type("jk?")
    assert opened.get_by_role("searchbox").input_value() == "jk?"
    opened.keyboard.press("Escape")
    opened.keyboard.press("?")
    assert opened.get_by_role("dialog", name="Keys").is_visible()
    opened.keyboard.press("Escape")
    assert not opened.get_by_role("dialog", name="Keys").is_visible()
    opened.keyboard.press("u")
    opened.wait_for_selector("text=Identities in full")
    opened.keyboard.press("o")
    opened.wait_for_selector("text=Score and length")
    assert opened.evaluate("location.hash") == "#/"
