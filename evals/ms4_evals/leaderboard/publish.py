"""Writes the leaderboard: page, plot and JSON values.

Exercise it: ``ms4 leaderboard results.sqlite --out OUT``, or ``pytest tests/evals/ms4_evals/leaderboard/test_publish.py``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ms4_evals.leaderboard.collect import Board, board_values
from ms4_evals.leaderboard.page import render_page
from ms4_evals.leaderboard.plot import plot_png
from ms4_train.storage import atomic_write_bytes, atomic_write_text, storage_errors

LEADERBOARD_FORMAT = "ms4-leaderboard/1"


@dataclass(frozen=True)
class Publication:
    """Where the leaderboard was written."""

    page: Path
    plot: Path
    values: Path


def publish(boards: Sequence[Board], folder: Path) -> Publication:
    """Write ``leaderboard.html``, ``leaderboard.png`` and ``leaderboard.json``, each whole or not at all.

    Raises:
        StorageError: a file cannot be written.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    written = Publication(folder / "leaderboard.html", folder / "leaderboard.png", folder / "leaderboard.json")
    plot = plot_png(boards)
    values = {"format": LEADERBOARD_FORMAT, "boards": [board_values(board) for board in boards]}
    atomic_write_bytes(written.plot, plot)
    atomic_write_text(written.page, render_page(boards, plot))
    atomic_write_text(written.values, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return written
