"""Placeholders of system prompts."""

from __future__ import annotations

import datetime

from ms4_train.chat import render_system_prompt
from ms4_train.chat.system_prompt import placeholders


def test_name_and_dates_are_filled_in_and_other_braces_stay() -> None:
    text = 'You are {name}. Today is {today}, yesterday was {yesterday}. {"a": {}} {Today} {{name}}'
    rendered = render_system_prompt(text, name="Mini", today=datetime.date(2024, 3, 1))
    assert rendered == 'You are Mini. Today is 2024-03-01, yesterday was 2024-02-29. {"a": {}} {Today} {Mini}'


def test_a_value_is_not_a_template() -> None:
    assert render_system_prompt("{name}", name="{today}", today=datetime.date(2024, 1, 1)) == "{today}"


def test_placeholders_are_found() -> None:
    assert placeholders("{name} {today} {other}") == {"name", "today"}
    assert placeholders("none") == set()
