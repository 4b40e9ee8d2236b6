"""Expressions of outside files: Python's own answers, within bounds, whatever they are."""

from __future__ import annotations

import re
import time

import pytest
from support.axolotl_files import PATTERN

from ms4_train.config.importing import patterns
from ms4_train.config.importing.module_names import adaptable_names
from ms4_train.config.importing.patterns import matching_names
from ms4_train.errors import UntrustedInputError

NAMES = adaptable_names()


@pytest.mark.parametrize("how", ["match", "fullmatch"])
@pytest.mark.parametrize("pattern", [PATTERN, r".*(q_a|o)_proj", r"(?i)LM_HEAD", r"model\.(?!vision).*\.[0-9]\..*", "", "x{3}"])
def test_equals_python_s_own(pattern, how):
    expected = [name for name in NAMES if getattr(re.compile(pattern), how)(name)]
    assert matching_names(pattern, NAMES, how=how) == expected


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(" * 50, "not a regular expression (missing )"),
        ("[z-a]", "not a regular expression"),
        ("a" * 2001, "2,001 characters; at most 2,000"),
        ("\\", "not a regular expression"),
    ],
)
def test_what_is_none_is_refused(pattern, words):
    with pytest.raises(UntrustedInputError) as caught:
        matching_names(pattern, NAMES, how="fullmatch", key="the_key")
    assert words in str(caught.value)
    assert caught.value.key == "the_key"
    assert "as a list" in str(caught.value)


def test_an_expression_that_never_ends_is_ended(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.5)
    start = time.monotonic()
    with pytest.raises(UntrustedInputError, match="not done after"):
        matching_names(r"((.*)*)*z", NAMES, how="fullmatch")
    assert time.monotonic() - start < 5


def test_control_the_same_names_without_the_trap(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 5.0)
    assert matching_names(r".*z", NAMES, how="fullmatch") == []
