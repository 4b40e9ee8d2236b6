"""The leaderboard in a real headless Chromium, from a folder and from a server: what users click and type, with nothing said on the console
and no request that leaves the page.
"""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest
from support.browser import board_address, go, served, watched_page
from support.sites import MODELS, aime_task, code_task, fill_store

from ms4_evals.leaderboard import page_assets
from ms4_evals.leaderboard.collect import collect_boards
from ms4_evals.leaderboard.publish import publish

SITE_SOURCES = Path(page_assets.__file__).with_name("site")


def every_view(site):
    board = site[1][1]
    return (("#/", "tbody tr"), (board_address(board), "text=Identities in full"), (board_address(board, "samples"), ".sample-head"))


def model_names(page):
    return [row.inner_text() for row in page.query_selector_all("tbody tr:not([hidden]) > th .label-text")]


def test_from_a_folder_and_from_a_server_alike(browser, site):
    folder, boards, _ = site
    texts = []
    with served(folder) as server:
        for home in (folder.as_uri() + "/", server):
            with watched_page(browser) as watched:
                page = watched.page
                page.goto(home + "index.html")
                page.wait_for_selector("tbody tr")
                texts.append(page.inner_text("main"))
                go(page, board_address(boards[1], "samples"), ".sample-head")
                texts[-1] += page.inner_text(".pane")
                assert watched.complaints(home) == []
                assert len([url for url in watched.requests if url.endswith(".js")]) >= 3
    assert texts[0] == texts[1]
    for board in boards:
        assert board.title in texts[0]
        for row in board.rows:
            assert row.label in texts[0]
            assert f"{100 * next(iter(row.cells.values())).headline.value:.1f}" in texts[0]


def test_sorting_by_mouse_and_by_keyboard(opened, site):
    board = site[1][0]
    scores = {row.label: row.cells[board.columns[1].column_id].headline.value for row in board.rows}
    head = opened.locator("thead tr:nth-child(2) th").nth(2)
    button = head.locator("button")
    button.click()
    assert head.get_attribute("aria-sort") == "descending"
    assert [scores[name] for name in model_names(opened)] == sorted(scores.values(), reverse=True)
    button.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert [scores[name] for name in model_names(opened)] == sorted(scores.values())
    opened.locator("thead tr:nth-child(2) th").nth(0).locator("button").press("Space")
    assert model_names(opened) == sorted(scores)
    assert opened.locator("thead th[aria-sort=ascending]").count() == 1


def test_filters_by_text_task_and_mode_and_the_address_keeps_them(opened, site):
    boards = site[1]
    opened.get_by_role("searchbox", name="Model").fill("model nvfp4")
    assert model_names(opened) == ["model A, NVFP4"]
    assert opened.inner_text(".status") == "1 model of 4"
    assert opened.locator(".charts a.point").count() == 6
    opened.get_by_role("combobox", name="Task").select_option(label=boards[1].title)
    assert opened.locator("figure").count() == 1
    opened.get_by_role("radio", name="high").check(force=True)
    assert [text.strip() for text in opened.locator("thead tr:nth-child(2) th").all_inner_texts()] == ["model", "high"]
    assert opened.locator(".charts a.point").count() == 1
    opened.wait_for_function("() => location.hash.includes('mode=high')")
    opened.reload()
    opened.wait_for_selector("tbody tr:not([hidden])")
    assert model_names(opened) == ["model A, NVFP4"]
    assert opened.locator("figure").count() == 1
    opened.get_by_role("searchbox", name="Model").fill("nobody")
    assert opened.inner_text(".status") == "No model has this in its name."


@pytest.mark.slow
def test_the_chart_shows_every_finished_evaluation_and_published_ones_apart(opened, site):
    for number, board in enumerate(site[1]):
        chart = opened.locator(".charts figure").nth(number)
        labels = [mark.get_attribute("aria-label") for mark in chart.locator("a.point").all()]
        assert len(labels) == sum(len(row.cells) for row in board.rows)
        assert any("on the Pareto front" in label for label in labels)
        expected = {
            f"{row.label}, {column.mode}: score {100 * cell.headline.value:.1f} %"
            for row in board.rows
            for column in board.columns
            if (cell := row.cells[column.column_id])
        }
        assert {label.split(" [")[0] for label in labels} == expected
        published = chart.locator(".published-mark")
        assert published.count() > 0
        assert all("not measured here" in mark.get_attribute("aria-label") for mark in published.all())
        assert chart.locator("a .published-mark").count() == 0
    # The card's point has a length in characters of the whole output, and in nothing else: elsewhere it stands in the strip.
    strip = opened.locator(".charts figure").nth(2).locator(".strip .published-mark")
    before = strip.count()
    opened.get_by_role("radio", name="tokens").check(force=True)
    assert strip.count() == before + 1
    assert "thousands of tokens" in opened.locator(".axis-title").first.text_content()
    opened.get_by_role("radio", name="answer", exact=True).check(force=True)
    assert "final answer" in opened.locator(".axis-title").first.text_content()


@pytest.mark.slow
def test_numbers_are_rounded_as_in_reports(opened):
    """31.25 is 31.2 in Python and would be 31.3 in JavaScript: a score must not depend on where it is read."""
    source = (SITE_SOURCES / "core.js").read_text(encoding="utf-8")
    fixed = re.search(r"^function fixed\(.*?^}$", source, flags=re.DOTALL | re.MULTILINE)[0]
    values = [100 * part / count for count in (8, 16, 32, 48, 64, 77, 160, 1055) for part in range(count + 1)] + [0.05, 0.25, 1e-9, 99.95]
    shown = opened.evaluate(f"values => {{ {fixed}; return values.map(value => fixed(value, 1)) }}", values)
    assert shown == [f"{value:.1f}" for value in values]
    plain = opened.evaluate("values => values.map(value => value.toFixed(1))", values)
    assert plain != shown, "the control: there are halves among them"


@pytest.mark.slow
def test_the_front_is_what_no_other_point_beats(opened, site):
    for number, board in enumerate(site[1]):
        points = {
            (row.label, column.mode): (cell.summary.lengths["total_chars"]["all"].mean, cell.headline.value)
            for row in board.rows
            for column in board.columns
            if (cell := row.cells[column.column_id])
        }
        front = {
            key
            for key, (length, score) in points.items()
            if not any((a <= length and b >= score) and (a, b) != (length, score) for a, b in points.values())
        }
        labels = [mark.get_attribute("aria-label") for mark in opened.locator(".charts figure").nth(number).locator("a.point").all()]
        shown = {tuple(label.split(": score")[0].rsplit(", ", 1)) for label in labels if label.endswith("on the Pareto front")}
        assert shown == front


@pytest.mark.slow
def test_the_page_of_a_task_holds_breakdowns_graders_and_identities(opened, site):
    board = site[1][1]
    go(opened, board_address(board), "text=Identities in full")
    text = opened.inner_text("main")
    for words in ("By difficulty", "By month", "By platform", "By length of the output, tokens", "without errata", "McNemar, exact p"):
        assert words in text
    assert "livecodebench-official looks at the same answers" in text
    identities = opened.locator("section[aria-label='Identities in full']").text_content()
    for identity in (board.board_id, board.grader_id, *(row.run_id for row in board.rows), *(column.column_id for column in board.columns)):
        assert identity in identities
    hard = next(part for part in board.rows[0].cells[board.columns[1].column_id].summary.breakdowns["difficulty"] if part.value == "hard")
    row = opened.locator("table", has_text="By difficulty").locator("tbody tr", has_text="hard")
    assert f"{100 * hard.score.value:.1f}" in row.inner_text()
    opened.get_by_role("combobox", name="Length of").select_option(label="answer, tokens")
    mean = board.rows[0].cells[board.columns[1].column_id].summary.lengths["answer_tokens"]["all"].mean
    assert f"{mean:,.0f}" in opened.locator("table", has_text="Lengths per sample").inner_text()


@pytest.mark.slow
@pytest.mark.parametrize("strange", ["#/nowhere", "#/task/000000000000", "#/task", "#/%E0%A4%A", "#/x?%=%&&="])
def test_a_strange_address_says_so(opened, strange):
    go(opened, strange, "text=This leaderboard has no such page.")
    opened.get_by_role("link", name="All tasks").click()
    opened.wait_for_selector("tbody tr")


def background(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_dark_and_light_follow_the_system_until_chosen_and_the_choice_is_kept(browser, site):
    home = site[0].as_uri() + "/"
    with watched_page(browser, color_scheme="dark") as watched:
        page = watched.page
        page.goto(home + "index.html")
        page.wait_for_selector("tbody tr")
        assert background(page) == "rgb(21, 24, 28)"
        page.emulate_media(color_scheme="light")
        assert background(page) == "rgb(255, 255, 255)"
        for chosen in ("light", "dark"):
            page.keyboard.press("t")
            assert page.locator("html").get_attribute("data-theme") == chosen
        assert background(page) == "rgb(21, 24, 28)"
        page.reload()
        page.wait_for_selector("tbody tr")
        assert background(page) == "rgb(21, 24, 28)"
        assert page.get_by_role("button", name="Theme: dark").is_visible()
        page.get_by_role("button", name="Theme: dark").click()
        assert background(page) == "rgb(255, 255, 255)"
        assert watched.complaints(home) == []


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const light = color => {
    canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    const linear = v => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(v => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$|transparent/.test(color)) return color;
    }
    return "white";
  };
  const poor = [];
  for (const element of document.querySelectorAll("main *, header *")) {
    const hasText = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!hasText || element.closest("svg, option, [disabled]")) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.push(`${element.className} ${element.textContent.slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return [...new Set(poor)];
}"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_in_both_themes(browser, site, scheme):
    """At least 4.5 to 1, as WCAG 2.2 asks of texts of this size (success criterion 1.4.3)."""
    with watched_page(browser, color_scheme=scheme) as watched:
        watched.page.goto(site[0].as_uri() + "/index.html")
        watched.page.wait_for_selector("tbody tr")
        assert watched.page.evaluate(CONTRAST) == []
        for path, selector in (
            (board_address(site[1][1]), "text=Identities in full"),
            (board_address(site[1][1], "samples"), ".sample-head"),
        ):
            go(watched.page, path, selector)
            assert watched.page.evaluate(CONTRAST) == []


@pytest.mark.slow
def test_every_control_has_a_name_and_every_table_its_heads(opened, site):
    for path, selector in every_view(site):
        go(opened, path, selector)
        nameless = opened.evaluate(
            "() => [...document.querySelectorAll('input, select, button, a')].filter(e =>"
            " !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim())).map(e => e.outerHTML)"
        )
        assert nameless == []
        assert opened.locator("thead th:not([scope])").count() == 0
        assert opened.locator("tbody tr > :first-child:not(th[scope=row])").count() == 0
        assert opened.locator("table:not(:has(caption))").count() == 0
        assert opened.locator("main h1").count() == 1


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 768])
def test_a_small_screen_scrolls_tables_and_not_the_page(browser, site, width):
    with watched_page(browser, viewport={"width": width, "height": 740}) as watched:
        page = watched.page
        page.goto(site[0].as_uri() + "/index.html")
        page.wait_for_selector("tbody tr")
        for path, selector in every_view(site):
            go(page, path, selector)
            assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), path


@pytest.mark.slow
def test_rows_are_marked_where_programs_ran_without_a_sandbox_or_samples_are_missing(browser, tmp_path):
    store = tmp_path / "r.sqlite"
    fill_store(store, [code_task(1, 6, grader="livecodebench-strict/1.0 no-sandbox"), aime_task(1, 4)], MODELS[:1], scale=0.01)
    connection = sqlite3.connect(store)
    connection.execute("DELETE FROM samples WHERE problem_id LIKE 'aime%/01' AND mode = 'high'")
    connection.commit()
    connection.close()
    for allow_errors in (False, True):
        publish(collect_boards([store], allow_errors=allow_errors), tmp_path / "out")
        with watched_page(browser) as watched:
            page = watched.page
            page.goto((tmp_path / "out" / "index.html").as_uri())
            page.wait_for_selector("tbody tr")
            code_none, code_high, _, aime_none, aime_high = (cell.inner_text() for cell in page.locator("tbody td").all()[:5])
            assert "no sandbox" in code_none
            assert "no sandbox" in code_high
            assert "no sandbox" not in aime_none
            assert "partial" in aime_high
            assert ("3 of 4" in aime_high) != allow_errors
            go(page, page.locator("figcaption a").first.get_attribute("href"), "text=Identities in full")
            assert "no sandbox" in page.locator("main > .facts").inner_text()
