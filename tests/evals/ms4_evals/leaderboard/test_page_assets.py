"""Style and script of the page: self-contained, and about elements that the page has."""

import re

from ms4_evals.leaderboard.page import render_page
from ms4_evals.leaderboard.page_assets import SCRIPT, STYLE


def test_they_load_nothing():
    for forbidden in ("http", "url(", "@import", "fetch", "innerHTML", "eval", "</"):
        assert forbidden not in STYLE
        assert forbidden not in SCRIPT


def test_every_class_of_the_style_is_used_by_the_page(boards):
    page = render_page(boards, b"png")
    used = {name for value in re.findall(r'class="([^"]*)"', page) for name in value.split()}
    styled = set(re.findall(r"\.([a-z][a-z-]*)", re.sub(r"\{[^}]*\}", "", STYLE)))
    assert styled <= used
    assert 'querySelectorAll("table.sortable")' in SCRIPT
    assert "sortable" in used
