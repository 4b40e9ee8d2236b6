"""Pieces of Markdown: numbers as people read them, and outside text that stays where it is put."""

import pytest

from ms4_evals.markdown import counted, in_code, in_table, interval, number, p_value, percent, points, table


def test_numbers():
    assert [percent(value) for value in (0.12345, 1.0, None)] == ["12.3", "100.0", "-"]
    assert [points(value) for value in (0.05, -0.05, None)] == ["+5.0", "-5.0", "-"]
    assert interval({"low": 0.1, "high": 0.25}) == "10.0 to 25.0"
    assert [p_value(p) for p in (0.0312, 1.0, 1.234e-9, None)] == ["0.031", "1", "1.2e-09", "-"]
    assert [number(1234.56), number(1234.56, 0), number(None)] == ["1,234.6", "1,235", "-"]
    assert counted({"WA": 1200, "T|E": 3}) == "WA 1,200, T\\|E 3"


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        (" a\n\tb | `c`", "a b \\| 'c'"),
        ("<script>", "&lt;script>"),
        ("![x](http://x)", "!\\[x](http://x)"),
        ("\x1b[31mred", "\N{REPLACEMENT CHARACTER}\\[31mred"),
    ],
)
def test_outside_text_in_a_cell(text, cell):
    assert in_table(text) == cell


def test_outside_text_as_code():
    assert in_code("a`b\n|c <d>") == "`a'b |c <d>`"
    assert in_code("") == "` `"


def test_a_table():
    assert table(["a", "b"], [["1", "2"]]) == ["| a | b |", "| --- | ---: |", "| 1 | 2 |", ""]
    assert table(["a", "b"], []) == []
