"""Documents are found whatever an archive made of their names, and hostile archives are refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from support.lcr_data import small_questions, write_hub_copy

from ms4_evals.tasks.lcr import documents as module
from ms4_evals.tasks.lcr.documents import open_documents
from ms4_evals.tasks.lcr.published import DOCUMENTS_FILE
from ms4_train.errors import EvaluationError, UntrustedInputError

AWKWARD = [question for question in small_questions() if question.number in {80, 98}]
NAMES = {
    "legal_eu_ai": "Long awaited EU AI Act becomes law after publication in the EU\u2019s Official Journal _ White & Case LLP.txt",
    "mkt_gaming": "402813954_17. 260-275 Sinem Eyice Ba\u015fev.txt",
}


def _archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


@pytest.mark.parametrize("compose", ["NFC", "NFD"])
def test_names_of_the_hubs_archive_are_found(compose: str, tmp_path: Path) -> None:
    write_hub_copy(tmp_path, AWKWARD, compose=compose)
    archive = tmp_path / DOCUMENTS_FILE
    raw = [info.filename for info in zipfile.ZipFile(archive).infolist()]
    # The trouble is real: a plain reading of the archive does not know the name.
    assert not any(name.endswith(NAMES["legal_eu_ai"]) for name in raw)
    with open_documents(archive) as documents:
        assert documents.text("legal_eu_ai", NAMES["legal_eu_ai"]) == "Document 5 of legal_eu_ai.\nIt says 5."
        assert documents.text("mkt_gaming", NAMES["mkt_gaming"]) == "Document 4 of mkt_gaming.\nIt says 4."


def test_names_of_unpacked_copies_are_found(tmp_path: Path) -> None:
    """As unpacked by a tool that takes UTF-8 for code page 437, by one that decomposes, and by one that does neither."""
    name = NAMES["legal_eu_ai"]
    for number, shown in enumerate((name, name.encode("utf-8").decode("cp437"))):
        folder = tmp_path / str(number) / "lcr" / "Legal" / "legal_eu_ai"
        folder.mkdir(parents=True)
        (folder / shown).write_text("text", encoding="utf-8")
        with open_documents(tmp_path / str(number)) as documents:
            assert documents.text("legal_eu_ai", name) == "text"
    assert len(documents) == 1


def test_honest_code_page_437_is_left_alone(tmp_path: Path) -> None:
    archive = _archive(tmp_path / "a.zip", {"lcr/set/caf\u00e9.txt": b"x"})
    with open_documents(archive) as documents:
        assert documents.text("set", "caf\u00e9.txt") == "x"


def test_line_ends_are_those_of_text_mode(tmp_path: Path) -> None:
    archive = _archive(tmp_path / "a.zip", {"lcr/set/a.txt": b"one\r\ntwo\rthree\n"})
    with open_documents(archive) as documents:
        assert documents.text("set", "a.txt") == "one\ntwo\nthree\n"
        assert documents.text("set", "a.txt") is documents.text("set", "a.txt")


def test_a_missing_document_names_the_nearest(tmp_path: Path) -> None:
    archive = _archive(tmp_path / "a.zip", {"lcr/set/annual report 2023.txt": b"x"})
    with open_documents(archive) as documents:
        with pytest.raises(EvaluationError, match=r"the nearest there is 'annual report 2023\.txt'"):
            documents.text("set", "annual report 2024.txt")
        with pytest.raises(EvaluationError, match="no folder 'other'"):
            documents.text("other", "a.txt")


def test_two_documents_of_one_name_are_refused(tmp_path: Path) -> None:
    for copy in ("first", "second"):
        (tmp_path / copy / "set").mkdir(parents=True)
        (tmp_path / copy / "set" / "a.txt").write_text(copy)
    with pytest.raises(EvaluationError, match="same place"), open_documents(tmp_path):
        pass


@pytest.mark.parametrize("data", [b"", b"no archive", b"PK\x03\x04 torn"])
def test_other_bytes_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(EvaluationError, match="no archive"), open_documents(tmp_path / "a.zip"):
        pass


def test_damage_is_noticed(tmp_path: Path) -> None:
    archive = _archive(tmp_path / "a.zip", {"lcr/set/a.txt": b"some text " * 500})
    data = bytearray(archive.read_bytes())
    data[60] ^= 0xFF
    archive.write_bytes(bytes(data))
    with open_documents(archive) as documents, pytest.raises(EvaluationError, match="cannot be read"):
        documents.text("set", "a.txt")


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = _archive(tmp_path / "a.zip", {"lcr/set/a.txt": b"\0" * 3_000_000, "lcr/set/b.txt": b"x"})
    assert archive.stat().st_size < 5_000
    with open_documents(archive) as documents:
        assert len(documents.text("set", "a.txt")) == 3_000_000
    monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 1_000_000)
    with open_documents(archive) as documents, pytest.raises(EvaluationError, match="more than 1,000,000 bytes"):
        documents.text("set", "a.txt")
    monkeypatch.setattr(module, "MAX_ARCHIVE_BYTES", 1_000_000)
    with pytest.raises(EvaluationError, match="1,000,000 bytes"), open_documents(archive):
        pass
    monkeypatch.setattr(module, "MAX_MEMBERS", 1)
    with pytest.raises(EvaluationError, match="more than 1 files"), open_documents(archive):
        pass


def test_a_path_out_of_the_archive_leads_nowhere(tmp_path: Path) -> None:
    """Nothing is unpacked; a name with dots is a name."""
    (tmp_path / "secret.txt").write_text("secret")
    archive = _archive(tmp_path / "a.zip", {"../secret.txt": b"harmless", "lcr/set/a.txt": b"x"})
    with open_documents(archive) as documents:
        assert documents.text("..", "secret.txt") == "harmless"
        with pytest.raises(EvaluationError, match="missing"):
            documents.text("..", "../secret.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "secret.txt"]


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    archive = _archive(tmp_path / "a.zip", {"lcr/set/a.txt": b"caf\xe9"})
    with open_documents(archive) as documents, pytest.raises(EvaluationError, match="not UTF-8"):
        documents.text("set", "a.txt")
    with pytest.raises(UntrustedInputError, match="no such file"), open_documents(tmp_path / "none.zip"):
        pass
    with pytest.raises(EvaluationError, match="no documents"), open_documents(_archive(tmp_path / "b.zip", {"readme.md": b"x"})):
        pass
