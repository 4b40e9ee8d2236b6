"""The prompts against the published token counts: to the token where their tokenizer is at hand; else against the shipped one's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.lcr_data import real_questions, require_cl100k

from ms4_evals.tasks.lcr import tokens as module
from ms4_evals.tasks.lcr.prompt import head, tail
from ms4_evals.tasks.lcr.published import SET_OF_QUESTION
from ms4_evals.tasks.lcr.tokens import TOLERANCE, check_tokens, find_cl100k, load_cl100k
from ms4_evals.token_counts import TOKENIZER_NAME, count_tokens
from ms4_train.errors import EvaluationError


@pytest.fixture
def without_cl100k(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_cl100k", lambda: None)


def test_all_100_counts_agree_to_the_token() -> None:
    check = check_tokens(real_questions(), vocabulary=require_cl100k())
    assert check == module.TokenCheck("cl100k_base", True, 100, 114_563)


def test_counting_in_two_pieces_is_counting_the_whole() -> None:
    encoding = load_cl100k(require_cl100k())
    # The seam between the two pieces is the same in all prompts.
    for question in [question for question in real_questions() if question.number in {1, 21, 31, 75, 98}]:
        whole = len(encoding.encode_ordinary(head(question.documents) + tail(question.question)))
        assert whole == question.input_tokens - module.GARBLED_EXTRA_TOKENS.get(question.number, 0)


def test_the_vocabulary_is_tiktokens_own() -> None:
    """Ids of a text that tiktoken's documentation gives: ``tiktoken is great!`` is 83, 1609, 5963, 374, 2294, 0 in cl100k_base."""
    assert load_cl100k(require_cl100k()).encode_ordinary("tiktoken is great!") == [83, 1609, 5963, 374, 2294, 0]


def test_the_smallest_change_is_noticed_exactly() -> None:
    question = real_questions()[5]
    changed = replace(question, documents=(question.documents[0] + " more", *question.documents[1:]))
    with pytest.raises(EvaluationError, match=r"question 6 has 71,710 tokens \(cl100k_base\).*give 71,709"):
        check_tokens([changed], vocabulary=require_cl100k())


@pytest.mark.usefixtures("without_cl100k")
def test_without_the_vocabulary_the_shipped_one_counts() -> None:
    sample = [question for question in real_questions() if question.number in {6, 31}]
    check = check_tokens(sample)
    assert (check.tokenizer, check.is_exact, check.prompts) == (TOKENIZER_NAME, False, 2)
    # The longer of the two sets has 94,626 tokens; its question adds a few dozen.
    assert 94_626 < check.longest < 94_750


@pytest.mark.slow
@pytest.mark.usefixtures("without_cl100k")
def test_the_shipped_vocabulary_agrees_on_all_sets() -> None:
    assert check_tokens(real_questions()) == module.TokenCheck(TOKENIZER_NAME, False, 100, 123_129)
    for question in {question.document_set: question for question in real_questions()}.values():
        tekken = SET_OF_QUESTION[question.number].tekken_tokens
        assert count_tokens(head(question.documents)) == tekken
        assert 1.032 < (tekken + count_tokens(tail(question.question))) / question.input_tokens < 1.286
        shortest = min(count_tokens(text) for text in question.documents)
        assert shortest > tekken * TOLERANCE, question.document_set


@pytest.mark.usefixtures("without_cl100k")
@pytest.mark.parametrize("number", [6, 75])
def test_missing_and_doubled_documents_are_noticed(number: int) -> None:
    """Even the shortest of all, 319 characters in the set of question 75."""
    question = real_questions()[number - 1]
    shortest = min(question.documents, key=len)
    fewer = tuple(text for text in question.documents if text is not shortest)
    for documents in (fewer, (*question.documents, shortest)):
        with pytest.raises(EvaluationError, match="the documents of question"):
            check_tokens([replace(question, documents=documents)])


def test_another_file_is_not_taken_for_the_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / module._CL100K_CACHED
    other.write_bytes(b"IQ== 0\n")
    with pytest.raises(EvaluationError, match="SHA-256"):
        load_cl100k(other)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert find_cl100k() != other
    monkeypatch.setattr(module, "_CARRIERS", ())
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", "")
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path / "none"))
    assert find_cl100k() is None
