"""The shell: parsed with the standard library's HTML parser; nothing in it can run, load or break out."""

import base64
import hashlib
import json
from html.parser import HTMLParser

import pytest

from ms4_evals.leaderboard.page import policy, render_page
from ms4_evals.leaderboard.page_assets import script, style
from ms4_evals.leaderboard.site_values import site_values

VOID = {"meta", "link"}
ELEMENTS = {"html", "head", "title", "style", "body", "main", "h1", "noscript", "p", "a", "script", *VOID}
HOSTILE = "</title></script><!--<script>alert(1)</script><img src=http://x.example onerror='alert(2)'>\"'&\x00\x1b[31m\u2028"


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags nest."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.text = [], [], {}
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append((tag, dict(attrs).get("id")))

    def handle_endtag(self, tag):
        assert self.stack.pop()[0] == tag

    def handle_data(self, data):
        if self.stack:
            self.text[self.stack[-1]] = self.text.get(self.stack[-1], "") + data


def rendered(values):
    return render_page(values, plot="p.png", json_file="v.json")


@pytest.fixture(scope="module")
def page(boards):
    return rendered(site_values(boards, title="Boards", data="data-0"))


def test_the_values_come_back(boards, page):
    parsed = Page(page)
    assert json.loads(parsed.text["script", "site"]) == json.loads(json.dumps(site_values(boards, title="Boards", data="data-0")))


def test_the_policy_names_exactly_the_page_s_own_style_and_script(page):
    parsed = Page(page)
    (found,) = [attributes["content"] for tag, attributes in parsed.tags if tag == "meta" and "http-equiv" in attributes]
    assert found == policy()
    for text, tag in ((parsed.text["script", None], "script"), (parsed.text["style", None], "style")):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in found
    assert found.startswith("default-src 'none'; ")
    assert "unsafe" not in found
    assert parsed.text["script", None] == script()
    assert parsed.text["style", None] == style()


def test_there_is_no_outside_reference(page):
    parsed = Page(page)
    assert {tag for tag, _ in parsed.tags} == ELEMENTS
    assert [attributes["href"] for _, attributes in parsed.tags if "href" in attributes] == ["data:,", "p.png", "v.json"]
    assert all("src" not in attributes for _, attributes in parsed.tags)


def test_hostile_texts_stay_texts(boards, page):
    values = site_values(boards, title=HOSTILE, data="data-0")
    values["boards"][0]["title"] = values["models"][0]["label"] = HOSTILE
    hostile = rendered(values)
    parsed, honest = Page(hostile), Page(page)
    assert parsed.tags == honest.tags
    assert json.loads(parsed.text["script", "site"])["models"][0]["label"] == HOSTILE
    assert "\x1b" not in hostile.replace("\\u001b", "")
    assert "\x00" not in hostile
    assert "\u2028" not in hostile


def test_without_escaping_the_same_text_breaks_the_page(boards, page, monkeypatch):
    """The negative control: the checks above see what they are there to see."""
    monkeypatch.setattr("ms4_evals.leaderboard.page.script_json", json.dumps)
    values = site_values(boards, title="Boards", data="data-0")
    values["models"][0]["label"] = HOSTILE
    with pytest.raises((AssertionError, IndexError)):
        assert Page(rendered(values)).tags == Page(page).tags
