"""Garbled text is turned back, honest text is left alone."""

from __future__ import annotations

import csv
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.lcr_data import require_package

from ms4_evals.tasks.lcr.mojibake import is_garbled, mend


@pytest.mark.parametrize(
    ("garbled", "meant"),
    [
        ("Equinix\u201a\u00c4\u00f4s operating margin", "Equinix\u2019s operating margin"),
        ("\u201cBenign content\u201a\u00c4\u00f9?", "\u201cBenign content\u201d?"),
        ("2025. \u201a\u00c4\u00e3According", "2025. \u200bAccording"),
        ("caf\u221a\u00a9", "caf\u00e9"),
    ],
)
def test_garbled_text_is_mended(garbled: str, meant: str) -> None:
    assert is_garbled(garbled)
    assert mend(garbled) == meant
    assert not is_garbled(meant)


@pytest.mark.parametrize(
    "text", ["", "plain", "Ba\u015fev", "na\u00efve caf\u00e9", "\u00c4\u00f6\u00fc", "EU\u2019s \u2014 \u201cAct\u201d", "\U0001f600"]
)
def test_honest_text_is_left_alone(text: str) -> None:
    assert mend(text) == text


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x2FFF, exclude_categories=("Cs",)), max_size=40))
def test_whatever_is_garbled_comes_back(text: str) -> None:
    # Controls have no Mac Roman form of their own use; text that looks garbled already is not the point here.
    if not is_garbled(text) and not is_garbled(mend(text.encode("utf-8").decode("mac_roman"))):
        assert mend(text.encode("utf-8").decode("mac_roman")) == text


def test_the_package_has_five_garbled_questions_and_no_other_garbled_field() -> None:
    csv.field_size_limit(sys.maxsize)
    with require_package().open(encoding="utf-8", newline="") as file:
        rows = [(number, row["question"], row["answer"]) for number, row in enumerate(csv.DictReader(file), start=1)]
    assert [number for number, question, _ in rows if is_garbled(question)] == [5, 21, 62, 65, 81]
    assert not any(is_garbled(answer) for _, _, answer in rows)
    # As the hub's table at its pinned revision has it.
    assert mend(rows[20][1]) == "What was Equinix\u2019s operating margin to the nearest percent in 4Q23?"
    assert "Andrew DeGasperi\u2019s first question" in mend(rows[61][1])
    assert "Smartsheet\u2019s dollar-based net retention rate" in mend(rows[64][1])
