"""``fp8_scales.json``: the FP8 scales that are kept beside dequantised weights, so that they can be quantised again exactly as they were.

One entry for each quantised matrix, by our name of the piece: ``{"weight": ["BF16", 0.00123], "activation": ["BF16", 0.5]}``. Every value
of BF16, F16 and F32 is a double, which JSON's shortest decimal restores exactly. ``activation`` is null everywhere or nowhere.
Exercise it: ``pytest tests/ms4_train/weights/test_scales_file.py``.

Not covered: NVFP4's scales, which a weight's values alone do not determine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ms4_train.errors import WeightsError
from ms4_train.untrusted import parse_json, read_bytes
from ms4_train.weights.layouts.detect import families_present
from ms4_train.weights.layouts.names import and_more, nearest
from ms4_train.weights.layouts.pieces import ModelConfig
from ms4_train.weights.layouts.tables import Layout, LayoutTable
from ms4_train.weights.reading.checkpoint import Checkpoint, open_checkpoint

SCALES_FILE = "fp8_scales.json"
MAX_SCALES_BYTES = 64 << 20
SCALE_DTYPES: Mapping[str, torch.dtype] = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_NAMES = {dtype: name for name, dtype in SCALE_DTYPES.items()}
_FORMAT = "fp8 scales"
_FIX = f"convert the FP8 files again, which writes {SCALES_FILE} anew."


@dataclass(frozen=True, eq=False)
class PieceScales:
    """The scales of one matrix, 0-d each: its own, a factor, and its input's, None where activations are quantised dynamically."""

    weight: Tensor
    activation: Tensor | None


Scales = dict[str, PieceScales]
"""Our name of the piece -> its scales."""


def fp8_pieces(config: ModelConfig) -> list[str]:
    """Names of the pieces that the FP8 layouts quantise, in the order of the network."""
    table = LayoutTable(Layout.NATIVE_FP8, config)
    return [piece.name for piece in table.pieces().values() if table.place(piece).encoding == "fp8"]


def scales_of(checkpoint: Checkpoint) -> Scales:
    """The scales of an open FP8 checkpoint, in their stored types; empty for any other. Gate and up share one in the ``hf-fp8`` layout."""
    found: Scales = {}
    if checkpoint.layout.encoding == "fp8":
        for piece in checkpoint.pieces().values():
            weight = checkpoint.weight_scale(piece)
            if weight is not None:
                found[piece.name] = PieceScales(weight, checkpoint.activation_scale(piece))
    return found


def find_scales(place: str | Path, config: ModelConfig) -> Scales:
    """Scales for a model from a folder of FP8 weights (either family), from a folder with ``fp8_scales.json``, or from such a file.

    Raises:
        WeightsError: the place has no FP8 scales, or they belong to a model of other sizes.
        UntrustedInputError: a file is damaged.
    """
    place = Path(place)
    if not place.is_dir():
        return read_scales(place, config)
    if families_present(place):
        checkpoint = open_checkpoint(place)
        if checkpoint.layout.encoding == "fp8":
            _check_names(scales_of(checkpoint), config, place)
            return scales_of(checkpoint)
    if (place / SCALES_FILE).exists():
        return read_scales(place / SCALES_FILE, config)
    raise WeightsError(
        f"holds neither FP8 weights nor {SCALES_FILE}.", file=place, fix="name the folder of the FP8 model, or a scales file."
    )


def scales_text(scales: Mapping[str, PieceScales]) -> str:
    """The content of ``fp8_scales.json``, one line for each matrix."""
    lines = (f"  {json.dumps(name)}: {json.dumps(_entry(entry))}" for name, entry in scales.items())
    return f'{{\n "format": {json.dumps(_FORMAT)},\n "version": 1,\n "scales": {{\n' + ",\n".join(lines) + "\n }\n}\n"


def read_scales(file: str | Path, config: ModelConfig) -> Scales:
    """Read ``fp8_scales.json``, strictly: every matrix of the model once, every value a positive number that its type holds exactly.

    Raises:
        WeightsError: an entry is missing, unexpected or malformed; names it.
        UntrustedInputError: the file is missing, too large or no JSON.
    """
    file = Path(file)
    content = parse_json(read_bytes(file, max_bytes=MAX_SCALES_BYTES), file=file, max_depth=8)
    if not isinstance(content, dict) or content.get("format") != _FORMAT or content.get("version") != 1:
        raise WeightsError(f'must be an object with "format": "{_FORMAT}" and "version": 1.', file=file, fix=_FIX)
    entries = content.get("scales")
    if not isinstance(entries, dict):
        raise WeightsError("must map names of matrices to scales.", file=file, key="scales", fix=_FIX)
    _check_names(entries, config, file)
    scales = {name: _piece_scales(entries[name], name, file) for name in fp8_pieces(config)}
    lacking = [name for name, entry in scales.items() if entry.activation is None]
    if 0 < len(lacking) < len(scales):
        raise WeightsError(f"has no activation scale, but others have{and_more(lacking)}.", file=file, key=lacking[0], fix=_FIX)
    return scales


def _entry(scales: PieceScales) -> dict[str, Any]:
    return {
        kind: None if scale is None else [_NAMES[scale.dtype], float(scale)]
        for kind, scale in (("weight", scales.weight), ("activation", scales.activation))
    }


def _check_names(found: Iterable[str], config: ModelConfig, file: Path) -> None:
    names, wanted = set(found), fp8_pieces(config)
    missing = [name for name in wanted if name not in names]
    if missing:
        raise WeightsError(f"there are no scales for this matrix{and_more(missing)}.", file=file, key=missing[0], fix=_FIX)
    unexpected = sorted(names - set(wanted))
    if unexpected:
        hint = nearest(unexpected[0], wanted)
        what = f"is not a matrix of this model{and_more(unexpected)}." + (f" Nearest names: {', '.join(hint)}." if hint else "")
        raise WeightsError(what, file=file, key=unexpected[0], fix="use the scales of this model.")


def _piece_scales(entry: Any, name: str, file: Path) -> PieceScales:
    if not isinstance(entry, dict) or set(entry) != {"weight", "activation"}:
        raise WeightsError("must have exactly weight and activation.", file=file, key=name, fix=_FIX)
    weight = _scale(entry["weight"], f"{name}: weight", file)
    return PieceScales(weight, None if entry["activation"] is None else _scale(entry["activation"], f"{name}: activation", file))


def _scale(entry: Any, key: str, file: Path) -> Tensor:
    match entry:
        case [str(dtype), int() | float() as value] if dtype in SCALE_DTYPES and not isinstance(value, bool):
            scale = torch.tensor(float(value), dtype=SCALE_DTYPES[dtype])
            if float(scale) == value and 0 < float(value) < float("inf"):
                return scale
            raise WeightsError(f"{value!r} is not a positive number that {dtype} holds exactly.", file=file, key=key, fix=_FIX)
        case _:
            raise WeightsError('must be a type and a number, such as ["BF16", 0.5].', file=file, key=key, fix=_FIX)
