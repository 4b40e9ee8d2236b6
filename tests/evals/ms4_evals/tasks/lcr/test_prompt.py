"""The prompt, against the package that puts the same text together."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.lcr_data import require_package

from ms4_evals.tasks.lcr.prompt import head, split_context, tail

TWO = "BEGIN DOCUMENT 1:\nfirst\nEND DOCUMENT 1\n\nBEGIN DOCUMENT 2:\nsecond {x}\n\nEND DOCUMENT 2"


def test_the_prompt_is_the_cards() -> None:
    assert head(["first", "second {x}\n"]) + tail("Why {so}?") == (
        f"BEGIN INPUT DOCUMENTS\n\n{TWO}\n\nEND INPUT DOCUMENTS\n\n"
        "Answer the following question using the input documents provided above.\n\nSTART QUESTION\n\nWhy {so}?\n\nEND QUESTION\n"
    )


def test_the_package_asks_the_same_but_for_its_indentation() -> None:
    """Its prompt is a text in its source with twelve spaces before every line but the first; it is read, not imported."""
    source = (require_package().parents[1] / "main.py").read_text(encoding="utf-8")
    texts = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.JoinedStr)]
    (theirs,) = (text for text in texts if isinstance(text.values[0], ast.Constant) and str(text.values[0].value).startswith("BEGIN INPUT"))
    parts = [part.value if isinstance(part, ast.Constant) else f"<{ast.unparse(part.value)}>" for part in theirs.values]  # type: ignore[attr-defined]
    # Its last line is twelve spaces and nothing else.
    assert "".join(map(str, parts)).replace("\n            ", "\n") == head([]).replace("\n\n\n\n", "\n\n<context>\n\n") + tail(
        "<question>"
    )


def test_a_context_is_split_into_its_documents() -> None:
    assert split_context(TWO) == ("first", "second {x}\n")


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=30), min_size=1, max_size=5))
def test_splitting_undoes_joining(documents: list[str]) -> None:
    joined = head(documents).removeprefix("BEGIN INPUT DOCUMENTS\n\n").removesuffix("\n\nEND INPUT DOCUMENTS")
    assert split_context(joined) == tuple(documents)


@pytest.mark.parametrize(
    "context",
    ["", "text", "BEGIN DOCUMENT 1:\nx", "BEGIN DOCUMENT 2:\nx\nEND DOCUMENT 2", TWO + "\n", TWO[1:], "BEGIN DOCUMENT 1:\nEND DOCUMENT 1"],
)
def test_other_text_is_no_context(context: str) -> None:
    assert split_context(context) is None
