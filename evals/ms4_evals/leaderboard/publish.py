"""Writes the leaderboard: a folder with a page that needs no server and no network, the plot, and the values as JSON.

The data files of a build lie in a folder named by their content, and the page that names it is replaced last; whoever reads meanwhile has
the old page with the old files until then. Exercise it: ``ms4 leaderboard build results.sqlite --out OUT``, or
``pytest tests/evals/ms4_evals/leaderboard/test_publish.py``.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ms4_evals.leaderboard.collect import Board, board_values
from ms4_evals.leaderboard.page import render_page
from ms4_evals.leaderboard.plot import plot_png
from ms4_evals.leaderboard.samples import write_problems, write_samples
from ms4_evals.leaderboard.shards import ShardWriter
from ms4_evals.leaderboard.site_values import board_details, board_problems, cell_name, site_values
from ms4_train.storage import atomic_write_bytes, atomic_write_text, fsync_folder, storage_errors

LEADERBOARD_FORMAT = "ms4-leaderboard/2"
DEFAULT_TITLE = "Leaderboard"

_DATA = re.compile(r"data-[0-9a-f]{12}")
_TEMPORARY = "data-unfinished-"


@dataclass(frozen=True)
class Publication:
    """Where the leaderboard was written.

    Attributes:
        data: the folder of the files that the page loads.
        num_bytes, num_files: of that folder.
    """

    page: Path
    plot: Path
    values: Path
    data: Path
    num_bytes: int
    num_files: int


def publish(boards: Sequence[Board], folder: Path, *, title: str = DEFAULT_TITLE) -> Publication:
    """Write ``index.html`` with its data, ``leaderboard.png`` and ``leaderboard.json``; the same stores give the same bytes.

    Args:
        boards: from ``collect_boards``; samples are read from the stores again.
        folder: made if need be. Other files in it are left alone; data files of earlier builds go.
        title: of the page.

    Raises:
        EvaluationError: a store cannot be read any more.
        StorageError: a file cannot be written.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    page, plot, values = folder / "index.html", folder / "leaderboard.png", folder / "leaderboard.json"
    atomic_write_bytes(plot, plot_png(boards))
    written = {"format": LEADERBOARD_FORMAT, "title": title, "boards": [board_values(board) for board in boards]}
    atomic_write_text(values, json.dumps(written, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    with _unfinished(folder) as unfinished:
        writer = ShardWriter(unfinished)
        for number, board in enumerate(boards):
            _write_board(writer, board, number)
        data = folder / f"data-{writer.digest[:12]}"
        _finish(unfinished, data)
    atomic_write_text(page, render_page(site_values(boards, title=title, data=data.name), plot=plot.name, json_file=values.name))
    _remove_old(folder, data)
    return Publication(page, plot, values, data, writer.num_bytes, writer.num_files)


def _write_board(writer: ShardWriter, board: Board, number: int) -> None:
    problems = write_problems(writer, f"b{number}q", board_problems(board))
    samples = {
        cell_name(row_index, column_index): write_samples(writer, f"b{number}r{row_index}c{column_index}", row.run_id, cell)
        for row_index, row in enumerate(board.rows)
        for column_index, column in enumerate(board.columns)
        if (cell := row.cells.get(column.column_id)) is not None
    }
    writer.write(f"b{number}", board_details(board, problems, samples))


@contextlib.contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """A folder to be filled and renamed; gone afterwards if it was not."""
    with storage_errors(folder):
        unfinished = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder))
        unfinished.chmod(0o755)
    try:
        yield unfinished
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _finish(unfinished: Path, data: Path) -> None:
    """Give the files the folder that their content names."""
    with storage_errors(data):
        if data.exists():
            shutil.rmtree(data)  # the same name, but perhaps not all its files any more
        unfinished.rename(data)
        fsync_folder(data.parent)


def _remove_old(folder: Path, data: Path) -> None:
    """Remove data files of earlier builds, and nothing else: folders of our names that hold nothing but scripts."""
    for path in folder.iterdir():
        is_ours = path.is_dir() and not path.is_symlink() and (_DATA.fullmatch(path.name) or path.name.startswith(_TEMPORARY))
        if is_ours and path != data and all(item.suffix == ".js" and item.is_file() for item in path.iterdir()):
            with storage_errors(path):
                shutil.rmtree(path)
