"""Questions of both shapes are the published ones, or refused; the documents of the package stand in the published order."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from support.lcr_data import ANSWERS_1_1, real_questions, small_questions, write_hub_copy
from support.lcr_names import NAMED

from ms4_evals.tasks.lcr.documents import open_documents
from ms4_evals.tasks.lcr.prompt import head
from ms4_evals.tasks.lcr.published import DOCUMENTS_FILE, QUESTIONS_FILE, SETS
from ms4_evals.tasks.lcr.questions import LcrQuestion, check_version, hub_questions, package_questions
from ms4_train.errors import EvaluationError


def _hub(folder: Path) -> tuple[LcrQuestion, ...]:
    with open_documents(folder / DOCUMENTS_FILE) as documents:
        return hub_questions(folder / QUESTIONS_FILE, documents)


def _package(folder: Path, questions: list[LcrQuestion]) -> Path:
    with (folder / "package.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answer", "context"])
        for item in questions:
            context = head(item.documents).removeprefix("BEGIN INPUT DOCUMENTS\n\n").removesuffix("\n\nEND INPUT DOCUMENTS")
            writer.writerow([item.question, item.answer, context])
    return folder / "package.csv"


def test_the_package_has_100_questions_over_30_sets_of_229_documents() -> None:
    questions = real_questions()
    assert [question.number for question in questions] == list(range(1, 101))
    sets = {question.document_set: question.documents for question in questions}
    assert len(sets) == 30
    assert sum(map(len, sets.values())) == 229
    # 12 MB are held once, not a hundred times.
    assert len({id(question.documents) for question in questions}) == 30
    assert 12_000_000 < sum(len(text) for documents in sets.values() for text in documents) < 12_300_000
    assert [question.number for question in questions if question.is_mended] == [5, 21, 62, 65, 81]


@pytest.mark.parametrize("name", sorted(NAMED))
def test_the_packages_documents_stand_in_the_order_of_the_hubs_file_names(name: str) -> None:
    documents = next(question.documents for question in real_questions() if question.document_set == name)
    words = [words for _, words in NAMED[name]]
    assert len(documents) == len(words)
    starts = [" ".join(text.replace("#", " ").replace("*", " ").split())[:4_000].casefold() for text in documents]
    for position, (start, expected) in enumerate(zip(starts, words, strict=True), start=1):
        assert expected.casefold() in start, (position, expected, start[:200])


def test_any_other_order_would_be_noticed() -> None:
    """The words tell every document from its neighbours, but for pairs that bear one title: no rotation of a set passes."""
    for name, named in NAMED.items():
        documents = next(question.documents for question in real_questions() if question.document_set == name)
        starts = [" ".join(text.replace("#", " ").replace("*", " ").split())[:4_000].casefold() for text in documents]
        for turn in range(1, len(starts)):
            turned = starts[turn:] + starts[:turn]
            assert not all(words.casefold() in start for start, (_, words) in zip(turned, named, strict=True)), (name, turn)


def test_both_shapes_give_the_same_questions(tmp_path: Path) -> None:
    original = small_questions()
    assert _hub(write_hub_copy(tmp_path, original)) == original
    assert package_questions(_package(tmp_path, list(original))) == original


def test_documents_come_in_the_order_of_the_table_not_of_the_archive(tmp_path: Path) -> None:
    folder = write_hub_copy(tmp_path, small_questions(), windows_lines=True)
    table = folder / QUESTIONS_FILE
    text = table.read_text(encoding="utf-8")
    table.write_text(text.replace("australian-retail-outlook-2022.txt;australian-retail-outlook-2024.txt", "X;Y").replace(
        "X;Y", "australian-retail-outlook-2024.txt;australian-retail-outlook-2022.txt"), encoding="utf-8")  # fmt: skip
    swapped = {question.number: question.documents for question in _hub(folder)}
    assert swapped[91] == tuple(f"Document {index} of ind_aus_retail.\nIt says {index}." for index in (2, 1, 3))
    assert swapped[1] == small_questions()[0].documents


def test_garbled_questions_are_mended_and_say_so(tmp_path: Path) -> None:
    garbled = [replace(item, question="Equinix\u201a\u00c4\u00f4s?") if item.number == 21 else item for item in small_questions()]
    question = _hub(write_hub_copy(tmp_path, garbled))[20]
    assert (question.question, question.is_mended) == ("Equinix\u2019s?", True)


def test_incomplete_data_are_refused(tmp_path: Path) -> None:
    questions = list(small_questions())
    cases: dict[str, tuple[list[LcrQuestion], str]] = {
        "few": (questions[:99], "here are 99"),
        "twice": ([*questions[:99], questions[0]], "99 differ in number"),
        "foreign": ([replace(item, document_set="ac_hack", documents=questions[3].documents) for item in questions[:1]] + questions[1:],
                    "question 1 is asked over 4 documents of Academia/ac_markets; here it has 9"),
        "short": ([replace(item, documents=item.documents[:-1]) if item.document_set == "ind_clean" else item for item in questions],
                  "question 90 is asked over 5 documents"),
        "empty": ([replace(questions[0], question=" "), *questions[1:]], "question: is empty"),
    }  # fmt: skip
    for name, (changed, message) in cases.items():
        (tmp_path / name).mkdir()
        with pytest.raises(EvaluationError, match=message):
            _hub(write_hub_copy(tmp_path / name, changed))


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    folder = write_hub_copy(tmp_path, small_questions())
    table = folder / QUESTIONS_FILE
    table.write_text(table.read_text(encoding="utf-8").replace("data_source_filenames", "files", 1), encoding="utf-8")
    with pytest.raises(EvaluationError, match="no column data_source_filenames"):
        _hub(folder)


def test_package_shapes_that_are_refused(tmp_path: Path) -> None:
    questions = list(small_questions())
    with pytest.raises(EvaluationError, match="here are 2"):
        package_questions(_package(tmp_path, questions[:2]))
    with pytest.raises(EvaluationError, match="more than 100"):
        package_questions(_package(tmp_path, [*questions, questions[0]]))
    with pytest.raises(EvaluationError, match="question 2 is asked over 4 documents"):
        package_questions(_package(tmp_path, [questions[0], questions[99], *questions[2:]]))
    other = replace(questions[1], documents=tuple(reversed(questions[1].documents)))
    with pytest.raises(EvaluationError, match="question 2 is asked over"):
        package_questions(_package(tmp_path, [questions[0], other, *questions[2:]]))
    (tmp_path / "bad.csv").write_text("question,answer,context\nq,a,joined differently\n")
    with pytest.raises(EvaluationError, match="not documents numbered from 1"):
        package_questions(tmp_path / "bad.csv")


def test_the_version_is_read_off_the_answers(tmp_path: Path) -> None:
    old = small_questions()
    new = tuple(replace(item, answer=ANSWERS_1_1.get(item.number, item.answer)) for item in old)
    mixed = tuple(replace(item, answer="16%") if item.number == 21 else item for item in old)
    check_version(old, "1.0", tmp_path)
    check_version(new, "1.1", tmp_path)
    with pytest.raises(EvaluationError, match=r"those of 1\.0, not of 1\.1"):
        check_version(old, "1.1", tmp_path)
    with pytest.raises(EvaluationError, match=r"another version, not of 1\.0"):
        check_version(new, "1.0", tmp_path)
    for version in ("1.0", "1.1"):
        with pytest.raises(EvaluationError):
            check_version(mixed, version, tmp_path)


def test_every_set_is_known_by_a_question() -> None:
    assert {item.document_set for item in small_questions()} == {documents.name for documents in SETS}
