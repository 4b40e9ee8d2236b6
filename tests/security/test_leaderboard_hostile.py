"""Hostile labels, questions, answers and notes on the leaderboard: in a real Chromium none runs, loads, redraws the page or leaves it."""

from __future__ import annotations

import dataclasses
import re
import sqlite3

import pytest
from support.browser import chromium, go, require_browser, served, watched_page
from support.sites import MODELS, MODES, aime_task, fill_store

from ms4_evals.graders.base import Grade
from ms4_evals.leaderboard.collect import collect_boards
from ms4_evals.leaderboard.publish import publish
from ms4_evals.leaderboard.shards import shown_text
from ms4_evals.runner import make_plans
from ms4_evals.store.records import RunRecord, Sample
from ms4_evals.store.results import ResultStore

RUN = "globalThis.hacked = 1"
TEXTS = (
    f"</script><script>{RUN}</script>",
    f"<!--<script>{RUN}//",
    f'<img src=x onerror="{RUN}"><svg onload="{RUN}"><iframe srcdoc="<script>parent.hacked=1</script>">',
    f'"]); {RUN}; ms4Data("b0", [["',
    f"${{{RUN}}} `{RUN}` \\u0022 \\\" '",
    f"\u2028{RUN}\u2029",
    "\x00\x07\x1b]0;title\x1b[2J\x9b\x7f",
    "\u202egnorw ton si siht\u202c \u2066\u2067x\u2069 \u200f\u061c",
    f"[link](javascript:{RUN}) <a href='javascript:{RUN}'>x</a> <style>* {{ display: none }}</style><base href='http://127.0.0.1:9/'>",
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'><link rel=stylesheet href='http://127.0.0.1:9/x.css'>",
    "\U0001f600\u0301" * 50 + "\ufeff\U000e0001",
    "x" * 1_000_000,
    "__proto__",
)


def write_hostile(path):
    """A store whose label, model, questions, answers, notes, errors and second graders are all hostile."""
    base = aime_task(1, len(TEXTS))
    problems = tuple(
        dataclasses.replace(problem, question=text, gold=text[:500], facts={text[:100] or "x": text[:200], "__proto__": "x"})
        for problem, text in zip(base.problems, TEXTS, strict=True)
    )
    task = dataclasses.replace(base, problems=problems, title=TEXTS[0] + TEXTS[2] + TEXTS[7])
    plans = make_plans([task], MODES)
    run = RunRecord(TEXTS[0] + TEXTS[2] + TEXTS[6], {"weights": TEXTS[0], "__proto__": TEXTS[2]}, 0)
    with ResultStore.open(path) as store:
        store.register(run, {"recipe": "eval"}, {TEXTS[0]: TEXTS[2]}, [plan.evaluation for plan in plans])
        for plan in plans:
            for planned, text in zip(plan.evaluation.problems, TEXTS, strict=True):
                sample = Sample(
                    *(planned.problem_id, planned.prompt_id, plan.evaluation.mode, plan.evaluation.sampling_id, 0, 1, "0" * 64),
                    *(text, text, 0, 1, 1, "stop", 0.1),
                    endpoint=text[:300],
                )
                details = {"class": text[:50], "__proto__": {"hacked": 1}, text[:60]: [text[:500], {"a": text[:500]}]}
                store.add(run.run_id, sample, Grade("wrong", text[:20_000], details, opinion="correct"), planned.grading_id)


@pytest.fixture(scope="module")
def browser():
    with chromium(require_browser()) as opened:
        yield opened


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A folder with the site, and its one board."""
    require_browser()
    folder = tmp_path_factory.mktemp("hostile")
    write_hostile(folder / "r.sqlite")
    (board,) = collect_boards([folder / "r.sqlite"])
    publish([board], folder / "out", title=TEXTS[0])
    return folder / "out", board


def is_harmless(page):
    return page.evaluate("() => globalThis.hacked === undefined && ({}).hacked === undefined")


@pytest.mark.slow
@pytest.mark.parametrize("is_served", [False, True])
def test_every_hostile_text_is_shown_and_none_obeyed(browser, hostile, is_served):
    folder, board = hostile
    with served(folder) as server, watched_page(browser) as watched:
        home = server if is_served else folder.as_uri() + "/"
        page = watched.page
        page.on("dialog", lambda dialog: watched.exceptions.append("a dialog"))
        page.goto(home + "index.html")
        page.wait_for_selector("tbody tr")
        assert page.inner_text(".label-text").startswith("</script><script>")
        go(page, f"#/task/{board.board_id[:12]}", "text=Identities in full")
        assert page.locator("main table").first.is_visible()
        assert is_harmless(page)
        for number, text in enumerate(TEXTS, 1):
            go(page, f"#/task/{board.board_id[:12]}/samples?mode=high&q=aime_2025%2F{number:02d}", ".sample-head")
            page.wait_for_function(
                "id => document.querySelector('.sample-head h2').textContent.startsWith(id)", arg=f"aime_2025/{number:02d}"
            )
            shown = shown_text(text)
            for name in ("question", "thinking", "final answer"):
                assert page.locator(f"pre[aria-label='{name}']").first.text_content() == shown[:40_000], (name, text[:50])
            assert is_harmless(page)
        assert page.locator("img, iframe, base, main style, main script, meta[http-equiv=refresh]").count() == 0
        assert page.locator("a:not([href^='#'])").count() == 0
        assert watched.complaints(home) == []


@pytest.mark.slow
def test_a_megabyte_is_shown_in_part_and_whole_when_asked_for(browser, hostile):
    folder, board = hostile
    number = 1 + TEXTS.index("x" * 1_000_000)
    with watched_page(browser) as watched:
        page = watched.page
        page.goto(f"{folder.as_uri()}/index.html#/task/{board.board_id[:12]}/samples?mode=high&q=aime_2025%2F{number:02d}")
        page.wait_for_selector(".sample-head")
        answer = page.locator("details.text", has=page.locator("pre[aria-label='final answer']"))
        assert len(answer.locator("pre").text_content()) == 40_000
        assert "40,000 of 1,000,000 characters." in answer.inner_text()
        answer.get_by_role("button", name="Show all").click()
        assert len(answer.locator("pre").text_content()) == 1_000_000
    assert max(path.stat().st_size for path in folder.rglob("*.js") if "t-" in path.name or "q-" in path.name) <= 200_100


# What a page that took texts for markup would do with one of them.
ATTACK = f"""() => {{
  document.body.insertAdjacentHTML("beforeend", `<img src="http://127.0.0.1:9/leak.png" onerror="{RUN}"><svg onload="{RUN}"></svg>`
    + `<iframe srcdoc="<script>parent.hacked = 1<\\/script>"></iframe><a id=trap href="javascript:{RUN}">x</a>`);
  document.getElementById("trap").click();
  return new Promise(done => setTimeout(done, 400));
}}"""


@pytest.mark.slow
def test_even_a_text_that_became_markup_could_not_run_or_load_and_without_the_policy_it_could(browser, hostile, tmp_path):
    """The second lock holds where the first is forced; and, as a control, the checks of these tests see a page that has neither."""
    folder = hostile[0]
    page_text = (folder / "index.html").read_text(encoding="utf-8")
    opened, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page_text)
    assert count == 1
    (tmp_path / "index.html").write_text(opened, encoding="utf-8")
    found = {}
    for name, home in (("policy", folder.as_uri() + "/"), ("none", tmp_path.as_uri() + "/")):
        with watched_page(browser) as watched:
            watched.page.goto(home + "index.html")
            watched.page.wait_for_selector("tbody tr")
            watched.page.evaluate(ATTACK)
            requests = [url for url in watched.requests if "127.0.0.1:9" in url]
            found[name] = (is_harmless(watched.page), bool(requests), watched.complaints(home) != [])
    assert found["none"] == (False, True, True)
    assert found["policy"][0], "nothing ran"
    assert found["policy"][2], "and the browser said why"


@pytest.mark.slow
def test_a_damaged_or_missing_data_file_is_named_and_the_rest_goes_on(browser, tmp_path):
    store = tmp_path / "r.sqlite"
    fill_store(store, [aime_task(2, 4)], MODELS[:1], scale=0.02)
    boards = collect_boards([store])
    data = publish(boards, tmp_path / "out").data
    for path in data.glob("b0r0c1t-*.js"):
        path.unlink()
    with watched_page(browser) as watched:
        page = watched.page
        page.goto(f"{(tmp_path / 'out').as_uri()}/index.html#/task/{boards[0].board_id[:12]}/samples?mode=high")
        page.wait_for_selector(".pane .failure")
        assert "could not be read" in page.inner_text(".pane")
        page.get_by_role("radio", name="none").check(force=True)
        page.wait_for_selector(".sample-head")
        (data / "b0.js").write_text("garbage(")
        page.reload()
        page.wait_for_selector("main .failure")
        assert "b0.js" in page.inner_text("main")
        page.get_by_role("link", name="All tasks").click()
        page.wait_for_selector("tbody tr")


@pytest.mark.slow
def test_of_thousands_of_samples_only_the_visible_rows_exist(browser, tmp_path):
    store = tmp_path / "r.sqlite"
    fill_store(store, [aime_task(50, 30)], MODELS[:1], scale=0.001)
    connection = sqlite3.connect(store)
    total = connection.execute("SELECT count(*) FROM samples").fetchone()[0]
    connection.close()
    boards = collect_boards([store])
    publish(boards, tmp_path / "out")
    with watched_page(browser) as watched:
        page = watched.page
        page.goto(f"{(tmp_path / 'out').as_uri()}/index.html#/task/{boards[0].board_id[:12]}/samples")
        page.wait_for_selector(".sample-head")
        assert page.inner_text(".browser > .status") == f"{total:,} samples"
        rows = 900 // 44 + 10  # as many as the window has room for, and a few on both sides
        for key in ("End", "PageUp", "Home", "PageDown"):
            page.locator(".list").focus()
            page.keyboard.press(key)
            assert 5 < page.locator(".option").count() <= rows
            assert page.locator(".option[aria-selected=true]").is_visible()
        page.keyboard.press("End")
        assert page.locator(".option[aria-selected=true]").get_attribute("aria-posinset") == str(total)
        page.locator(".list").evaluate("list => { list.scrollTop = list.scrollHeight / 2 }")
        page.wait_for_function("half => [...document.querySelectorAll('.option')].some(o => o.id === `sample-${half}`)", arg=total // 2)
        assert page.locator(".option").count() <= rows
        assert watched.complaints((tmp_path / "out").as_uri() + "/") == []
