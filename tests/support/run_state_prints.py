"""What a run leaves on the disk, as plain values that two runs can be compared by: exact losses, sums, data positions, names of folders."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ms4_train.checkpoint.folders import committed_steps


def committed(root: Path) -> list[Path]:
    """Folders of the committed checkpoints, oldest first."""
    return [folder for _, folder in committed_steps(root)]


def names_in(root: Path) -> list[str]:
    """Everything in a run's folder of checkpoints."""
    return sorted(path.name for path in root.iterdir()) if root.is_dir() else []


def logged(output: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that belong to steps; one that a kill tore is left out."""
    path = output / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in map(json.loads, (text for text in lines if text.endswith("\n"))) if "grad_norm" in line]


def last_logged(output: Path) -> int:
    """The last step whose metrics were written; 0 for none."""
    return max((line["step"] for line in logged(output)), default=0)


def print_of(output: Path, step: int) -> dict[str, Any]:
    """Everything a finished run leaves, except times.

    Args:
        output: folder of the run.
        step: of its last checkpoint.

    Returns:
        ``losses`` (step, loss and gradient norm to the bit), ``files`` (sums of weights, optimizer and random state, and of what was
        exported), ``loader`` (position in the data; None without that checkpoint) and ``folders`` of checkpoints.
    """
    last = output / "checkpoints" / f"step-{step:06d}"
    exported = (path for kind in ("model", "adapter") for path in (output / kind).glob("*.safetensors"))
    files = sorted([*last.glob("rank-*"), *exported])
    state = last / "state.json"
    return {
        "losses": [[line["step"], line["loss"].hex(), line["grad_norm"].hex()] for line in logged(output)],
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        "loader": json.loads(state.read_text())["loader"] if state.exists() else None,
        "folders": names_in(output / "checkpoints"),
    }
