"""What ``ms4 weights diff`` shows: the pieces that differ, worst first, and what else sets two checkpoints apart.

Exercise it: ``ms4 weights diff A B`` and ``pytest tests/ms4_train/cli/test_difference.py``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ms4_train.weights.compare.config_diff import ConfigDifference
    from ms4_train.weights.compare.diff import CheckpointDifference
    from ms4_train.weights.compare.piece_error import PieceError

_SHOWN_NAMES = 3


def difference_json(found: CheckpointDifference, tolerance: float, *, everything: bool) -> str:
    """One JSON object; of the pieces those that differ, or all of them. Infinite errors are the text ``inf``."""
    from dataclasses import asdict

    pieces = [piece for piece in found.pieces if everything or not piece.is_unchanged]
    content = {
        "num_pieces": len(found.pieces),
        "num_identical": found.num_identical,
        "tolerance": tolerance,
        "is_within_tolerance": found.is_within(tolerance),
        "pieces": [_finite(asdict(piece)) for piece in pieces],
        "only_a": found.only_a,
        "only_b": found.only_b,
        "reshaped": [asdict(piece) for piece in found.reshaped],
        "config": [asdict(change) for change in found.config],
    }
    return json.dumps(content, indent=2)


def print_difference(found: CheckpointDifference, tolerance: float, *, top: int | None, console: Console) -> None:
    """Print the worst pieces (all for None), what only one side has, the configuration, and a line that sums up."""
    shown = [piece for piece in found.pieces if not piece.is_unchanged] if top is not None else list(found.pieces)
    if shown:
        console.print(_table(shown[:top]))
        if top is not None and len(shown) > top:
            console.print(f"and {len(shown) - top:,} more that differ; --all shows every piece", style="dim", highlight=False)

    def line(text: str, style: str = "red") -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    for side, names in (("A", found.only_a), ("B", found.only_b)):
        if names:
            line(f"only in {side}: {len(names):,} pieces, {_some(names)}")
    for piece in found.reshaped:
        line(f"{piece.name}: {list(piece.a)} in A, {list(piece.b)} in B")
    print_config(found.config, console)
    activation = sum(piece.same_activation_scale is False for piece in found.pieces)
    if activation:
        line(f"{activation:,} scales of activations differ; servers use them, no weight depends on them", "yellow")
    line(_summary(found, tolerance), "green" if found.is_within(tolerance) else "red")


def print_config(changes: Sequence[ConfigDifference], console: Console) -> None:
    """Print configuration keys that differ, with what they mean for the network."""
    for change in changes:
        effect = "changes what is computed" if change.is_computational else "changes nothing that is computed"
        text = f"configuration: {change.key}: {change.a!r} in A, {change.b!r} in B; {effect}"
        console.print(text, style="red" if change.is_computational else "dim", highlight=False, markup=False, soft_wrap=True)


def _summary(found: CheckpointDifference, tolerance: float) -> str:
    count = f"{len(found.pieces):,} pieces: {found.num_identical:,} identical"
    differing = len(found.pieces) - found.num_identical
    if differing:
        count += f", {differing:,} differ"
    if found.worst is not None:
        count += f", worst {found.worst.name} by {found.worst.relative_error:.3g}"
    if tolerance:
        above = sum(not piece.relative_error <= tolerance for piece in found.pieces)
        count += f"; {above:,} above the tolerance of {tolerance:g}"
    return count


def _table(pieces: Sequence[PieceError]) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column("piece", overflow="fold")
    table.add_column("relative error", justify="right")
    table.add_column("largest error", justify="right")
    table.add_column("worst element", overflow="fold")
    has_codes = any(piece.same_codes is not None for piece in pieces)
    if has_codes:
        table.add_column("codes / scales")
    for piece in pieces:
        at = "" if piece.worst is None or piece.worst_values is None else _element(piece.worst, piece.worst_values)
        row = [piece.name, f"{piece.relative_error:.3g}", f"{piece.max_abs_error:.3g}", at]
        table.add_row(*row, *([_encoded(piece)] if has_codes else []))
    return table


def _element(index: tuple[int, ...], values: tuple[float, float]) -> str:
    return f"({', '.join(map(str, index))}): {values[0]:.5g}, {values[1]:.5g}"


def _encoded(piece: PieceError) -> str:
    if piece.same_codes is None:
        return ""
    return " / ".join("equal" if same else "differ" for same in (piece.same_codes, piece.same_scales))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN_NAMES]) + (" ..." if len(names) > _SHOWN_NAMES else "")


def _finite(value: Any) -> Any:
    """The same with numbers that JSON does not know as text."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
