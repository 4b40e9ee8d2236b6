"""Where the rows of LiveCodeBench come from: files of the hub at a fixed revision, a local folder of the same files, or one file.

The data set's own loading script is not run: recent versions of ``datasets`` refuse to, and it does nothing but name these files.
Exercise it: ``pytest tests/evals/ms4_evals/tasks/livecodebench/test_files.py``.
"""

from __future__ import annotations

from pathlib import Path

from ms4_evals.tasks.livecodebench.releases import HUB_DATASET, HUB_REVISION, ReleaseFile, release_files
from ms4_evals.tasks.livecodebench.rows import Row, iter_rows
from ms4_train.errors import EvaluationError, MissingDependencyError


def load_rows(release: str, path: Path | None) -> tuple[Row, ...]:
    """All problems of a release, in the order of its files.

    Args:
        release: ``v1`` to ``v6``.
        path: a folder with the release's files, or one file, of which all rows are taken; None for the hub.

    Raises:
        EvaluationError: a file that is missing or malformed, or a problem that stands there twice.
        MissingDependencyError: the hub cannot be reached.
    """
    rows: dict[str, Row] = {}
    for file, sha256 in _files(release, path):
        for row in iter_rows(file, sha256=sha256):
            if row.question_id in rows:
                raise EvaluationError(
                    "this problem stands in the data twice.",
                    file=file,
                    line=row.private_tests.line,
                    key=row.question_id,
                    fix="remove one of the two rows.",
                )
            rows[row.question_id] = row
    if not rows:
        raise EvaluationError("there are no problems.", file=path, key="path", fix="name a file with rows, or leave `path` out.")
    return tuple(rows.values())


def _files(release: str, path: Path | None) -> list[tuple[Path, str | None]]:
    """Files with the SHA-256 that each must have, where that is known."""
    if path is None:
        return [(_fetch(file), file.sha256) for file in release_files(release)]
    if not path.is_dir():
        return [(path, None)]
    names = [file.name for file in release_files(release)]
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise EvaluationError(
            f"the folder holds no {missing[0]}; release {release} is {', '.join(names)}.",
            file=path,
            key="path",
            fix="add the file, name a smaller release, or name one file instead of a folder.",
        )
    return [(path / name, None) for name in names]


def _fetch(file: ReleaseFile) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(HUB_DATASET, file.name, repo_type="dataset", revision=HUB_REVISION))
    except Exception as error:
        raise MissingDependencyError(
            f"LiveCodeBench's {file.name} could not be fetched from the hub ({type(error).__name__}: {str(error)[:200]}).",
            key=HUB_DATASET,
            fix="check the connection and the free disk space (4.5 GB), or set `path` to a local copy.",
        ) from error
