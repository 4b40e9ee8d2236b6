"""The page: parsed with the standard library's HTML parser; nothing in it can run, load or break out."""

import base64
import dataclasses
import hashlib
from html.parser import HTMLParser

import pytest

from ms4_evals.leaderboard.page import render_page
from ms4_evals.leaderboard.page_assets import SCRIPT
from ms4_evals.leaderboard.plot import plot_png
from ms4_evals.leaderboard.table import score_text

VOID = {"meta", "img", "br"}
HOSTILE = "</pre></details><script>alert(1)</script><img src=http://x.example onerror='alert(2)'>\"'&\x00\x1b[31m"


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags nest."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(boards):
    return render_page(boards, plot_png(boards, dpi=40))


def with_text(board, text):
    """The board with every outside text replaced."""

    def changed(cell):
        examples = tuple(dataclasses.replace(sample, thinking=text, answer=text, extracted=text, gold=text) for sample in cell.examples)
        problems = tuple(dataclasses.replace(problem, question=text) for problem in cell.summary.evaluation.problems)
        evaluation = dataclasses.replace(cell.summary.evaluation, problems=problems)
        return dataclasses.replace(cell, summary=dataclasses.replace(cell.summary, evaluation=evaluation), examples=examples)

    rows = [dataclasses.replace(row, label=text, cells={key: changed(cell) for key, cell in row.cells.items()}) for row in board.rows]
    return dataclasses.replace(board, title=text, rows=tuple(rows))


def test_it_shows_every_board_row_and_score(boards, page):
    parsed = Page(page)
    text = " ".join("".join(parsed.text).split())
    for board in boards:
        assert board.title in text
        assert board.board_id[:12] in text
        for row in board.rows:
            assert row.label in text
            for cell in row.cells.values():
                assert score_text(cell.summary).split(" ")[0].split("\n")[0] in text
    assert len(parsed.all("table")) == len(boards)


def test_numbers_can_be_sorted(boards, page):
    values = [attributes["data-value"] for attributes in Page(page).all("td") if "data-value" in attributes]
    assert values
    assert all(isinstance(float(value), float) for value in values)
    scores = {row.cells[column.column_id].summary.score.value for column in boards[0].columns for row in boards[0].rows}
    assert scores <= {float(value) for value in values}


def test_there_is_no_outside_reference(page):
    parsed = Page(page)
    assert not parsed.all("link")
    assert not parsed.all("iframe")
    assert all("src" not in attributes for attributes in parsed.all("script"))
    (image,) = parsed.all("img")
    assert image["src"].startswith("data:image/png;base64,")
    assert "http" not in page.replace("http-equiv", "")


def test_the_plot_is_embedded(boards, page):
    (image,) = Page(page).all("img")
    assert base64.b64decode(image["src"].split(",")[1]) == plot_png(boards, dpi=40)


def test_the_policy_allows_exactly_the_page_s_own_script(page):
    policy = next(attributes["content"] for attributes in Page(page).all("meta") if "http-equiv" in attributes)
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert page.count("<script") == 1
    assert f"<script>{SCRIPT}</script>" in page


def test_hostile_text_is_shown_and_not_obeyed(boards, page):
    hostile = render_page([with_text(board, HOSTILE) for board in boards], b"png")
    parsed, honest = Page(hostile), Page(page)
    assert [tag for tag, _ in parsed.tags if tag not in ("dt", "dd", "pre")] == [
        tag for tag, _ in honest.tags if tag not in ("dt", "dd", "pre")
    ]
    assert not [attributes for _, attributes in parsed.tags if "onerror" in attributes]
    assert "alert(1)" in "".join(parsed.text)
    assert "\x1b" not in hostile
    assert "\x00" not in hostile


def test_without_escaping_the_same_text_breaks_the_page(boards, monkeypatch):
    """The negative control: the checks above see what they are there to see."""
    monkeypatch.setattr("ms4_evals.leaderboard.page.escape", lambda text: text)
    hostile = render_page([with_text(board, HOSTILE) for board in boards], b"png")
    with pytest.raises(AssertionError):
        Page(hostile)


def test_long_texts_are_clipped_in_the_middle(boards):
    text = render_page([with_text(boards[0], "start" + "x" * 1_000_000 + "end")], b"png")
    assert "characters left out" in text
    assert "start" in text
    assert "xend" in text
