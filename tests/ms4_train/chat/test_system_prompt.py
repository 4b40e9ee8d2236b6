"""Placeholders of system prompts."""

from __future__ import annotations

import datetime

import pytest

from ms4_train.chat import load_system_prompt, render_system_prompt
from ms4_train.chat.system_prompt import placeholders
from ms4_train.errors import UntrustedInputError


def test_name_and_dates_are_filled_in_and_other_braces_stay() -> None:
    text = 'You are {name}. Today is {today}, yesterday was {yesterday}. {"a": {}} {Today} {{name}}'
    rendered = render_system_prompt(text, name="Mini", today=datetime.date(2024, 3, 1))
    assert rendered == 'You are Mini. Today is 2024-03-01, yesterday was 2024-02-29. {"a": {}} {Today} {Mini}'


def test_a_value_is_not_a_template() -> None:
    assert render_system_prompt("{name}", name="{today}", today=datetime.date(2024, 1, 1)) == "{today}"


def test_placeholders_are_found() -> None:
    assert placeholders("{name} {today} {other}") == {"name", "today"}
    assert placeholders("none") == set()


def test_a_prompt_is_text_or_a_file(tmp_path) -> None:
    (tmp_path / "SYSTEM_PROMPT.txt").write_text("You are {name}.\n")
    assert load_system_prompt(str(tmp_path / "SYSTEM_PROMPT.txt")) == "You are {name}."
    assert load_system_prompt("Read notes.txt\nthen answer.md") == "Read notes.txt\nthen answer.md"
    with pytest.raises(UntrustedInputError):
        load_system_prompt(str(tmp_path / "none.txt"))


def test_a_prompt_without_dates_needs_no_yesterday() -> None:
    assert render_system_prompt("{name} {today}", name="Mini", today=datetime.date.min) == "Mini 0001-01-01"
