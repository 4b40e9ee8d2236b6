"""What is written down of AA-LCR, against the numbers that others publish of it."""

from __future__ import annotations

import statistics

from support.lcr_data import real_questions

from ms4_evals.tasks.lcr.published import (
    CORRECTED_IN_1_1,
    GARBLED_EXTRA_TOKENS,
    INPUT_TOKENS,
    MARKS_OF_1_0,
    RELEASES,
    SET_OF_QUESTION,
    SETS,
)


def test_sizes_are_those_of_the_card_and_of_others_who_counted() -> None:
    # 0xBakeer/inference-atlas#23: 71,691 to 114,563 input tokens, median 95,288; the card: 100 questions, 7 categories, 30 sets. The card
    # speaks of 234 documents; the table names 229, which several projects that use it confirm.
    assert len(INPUT_TOKENS) == 100
    assert (min(INPUT_TOKENS.values()), max(INPUT_TOKENS.values())) == (71_691, 114_563)
    assert statistics.median(INPUT_TOKENS.values()) == 95_288
    assert len(SETS) == len({documents.name for documents in SETS}) == 30
    assert len({documents.category for documents in SETS}) == 7
    assert sum(documents.documents for documents in SETS) == 229


def test_every_question_belongs_to_one_set() -> None:
    assert sorted(number for documents in SETS for number in documents.questions) == list(range(1, 101)) == sorted(SET_OF_QUESTION)


def test_prompts_of_one_set_differ_by_their_questions_only() -> None:
    for documents in SETS:
        counts = [INPUT_TOKENS[number] for number in documents.questions]
        assert max(counts) - min(counts) < 150, documents.name


def test_corrections_and_releases() -> None:
    assert len(CORRECTED_IN_1_1) == 16
    assert set(MARKS_OF_1_0) <= CORRECTED_IN_1_1
    assert len({release.revision for release in RELEASES.values()}) == len(RELEASES) == 2
    assert set(GARBLED_EXTRA_TOKENS) == {5, 21, 62, 65, 81}


def test_the_package_has_the_answers_that_mark_1_0() -> None:
    answers = {question.number: question.answer for question in real_questions()}
    assert {number: answers[number] for number in MARKS_OF_1_0} == MARKS_OF_1_0
