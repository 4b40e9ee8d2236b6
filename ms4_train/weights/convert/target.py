"""What a conversion will store: the target's tensors with their types, and the FP8 scales that it keeps.

Exercise it: ``pytest tests/ms4_train/weights/convert/test_target.py``.

Not covered: where the bytes go (``plan``).
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ms4_train.errors import WeightsError
from ms4_train.weights.layouts.pieces import Piece
from ms4_train.weights.layouts.tables import HfNames, Layout, LayoutTable, TensorSpec
from ms4_train.weights.reading.checkpoint import DTYPES, Checkpoint
from ms4_train.weights.scales_file import SCALE_DTYPES, SCALES_FILE, PieceScales, Scales, find_scales, fp8_pieces, read_scales, scales_of

_LOG = logging.getLogger(__name__)
WeightScales = Literal["kept", "fitted"]
_SPELLED = {dtype: name for name, dtype in DTYPES.items()}
_SCALES_SPELLED = {dtype: name for name, dtype in SCALE_DTYPES.items()}


@dataclass(frozen=True, eq=False)
class Target:
    """What will be stored.

    Attributes:
        table: the layout, with the types that most values and scales have.
        specs: every stored tensor.
        scales: an FP8 target's, as they were kept; with ``is_fitted`` only those of activations count. Empty for other targets.
        is_fitted: whether weight scales are made from the weights.
        sidecar: scales to keep beside a plain target: the source's own, or those that lay beside it.
    """

    table: LayoutTable
    specs: dict[str, TensorSpec]
    scales: Scales
    is_fitted: bool
    sidecar: Scales

    def dtype(self, piece: Piece) -> torch.dtype:
        """Type in which a piece that is not quantised is stored."""
        return DTYPES[self.specs[self.table.place(piece).values].dtype]

    @property
    def has_activation_scales(self) -> bool:
        """Whether the scales of activations are stored."""
        return any(spec.is_optional for spec in self.specs.values())


def make_target(
    source: Checkpoint, to: Layout, *, scales: Path | None, weight_scales: WeightScales, dtype: torch.dtype | str | None
) -> Target:
    """Decide what is stored; arguments as of ``convert``.

    Raises:
        WeightsError: the layout or the type cannot be written, or the scales are not there.
    """
    if to is Layout.NVFP4:
        raise WeightsError(
            "NVFP4 is not written: its scales want calibration.",
            key="to",
            fix="convert to native-fp8, or quantise elsewhere.",
        )
    chosen = _chosen_dtype(source, dtype)
    is_fitted = weight_scales == "fitted" and to.encoding == "fp8"
    kept = _kept_scales(source, scales, is_fitted) if to.encoding == "fp8" else {}
    if to.encoding != "fp8" and (scales is not None or weight_scales != "kept"):
        key = "scales" if scales is not None else "weight_scales"
        raise WeightsError(f"the {to} layout has no scales.", key=key, fix="leave it out, or convert to native-fp8 or hf-fp8.")
    hf_names = HfNames.TEXT if source.config.vision is None else HfNames.DISK
    plain = chosen or (source.dtype if source.layout.encoding == "plain" else torch.bfloat16)
    scale_dtype = next((_SCALES_SPELLED[entry.weight.dtype] for entry in kept.values()), "BF16")
    table = LayoutTable(to, source.config, hf_names, _SPELLED[plain], "BF16" if is_fitted else scale_dtype)
    specs = _specs(source, table, chosen, kept, is_fitted)
    target = Target(table, specs, kept, is_fitted, {} if to.encoding != "plain" else _sidecar(source))
    if to.encoding == "fp8" and not target.has_activation_scales:
        _LOG.warning("%s: no scales of activations are known, so none are written: engines scale activations as they run.", source.folder)
    return target


def _chosen_dtype(source: Checkpoint, dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is None and any(stored.info.dtype == "F16" and _is_value(name) for name, stored in source.stored.items()):
        found = torch.float16
    if found == torch.float16:
        raise WeightsError(
            "float16 is not written: activations of this model's experts exceed its range (65504).",
            key="dtype",
            fix="use bfloat16 or float32.",
        )
    if dtype is not None and found not in (torch.bfloat16, torch.float32):
        raise WeightsError(f"{dtype} is not written.", key="dtype", fix="use bfloat16 or float32.")
    return found


def _is_value(stored_name: str) -> bool:
    return "scale" not in stored_name.rpartition(".")[2]


def _kept_scales(source: Checkpoint, given: Path | None, is_fitted: bool) -> Scales:
    """The source's own, else those that were given, else those beside the source; none at all is enough to fit the weights'."""
    own = scales_of(source)
    if own and given is not None:
        raise WeightsError("the source has scales of its own.", file=source.folder, key="scales", fix="leave it out.")
    if own:
        return own
    if given is not None:
        return find_scales(given, source.config)
    if (source.folder / SCALES_FILE).exists():
        return read_scales(source.folder / SCALES_FILE, source.config)
    if is_fitted:
        return {name: PieceScales(torch.ones((), dtype=torch.bfloat16), None) for name in fp8_pieces(source.config)}
    raise WeightsError(
        f"has no FP8 scales: it is not in FP8, and holds no {SCALES_FILE}.",
        file=source.folder,
        fix="give the folder of the FP8 model, or its scales file, as scales (--scales); or fit those of the weights alone.",
    )


def _sidecar(source: Checkpoint) -> Scales:
    own = scales_of(source)
    if own or not (source.folder / SCALES_FILE).exists():
        return own
    return read_scales(source.folder / SCALES_FILE, source.config)


def _specs(source: Checkpoint, table: LayoutTable, chosen: torch.dtype | None, kept: Scales, is_fitted: bool) -> dict[str, TensorSpec]:
    """The table's tensors, each in the type of what goes into it; of a stack whose members differ, in one that holds all."""
    types: dict[str, list[torch.dtype]] = {}
    for piece in table.pieces().values():
        place, found = table.place(piece), source.place(piece)
        if place.encoding == "plain":
            stored = DTYPES[source.stored[found.values].info.dtype] if found.encoding == "plain" else torch.bfloat16
            types.setdefault(place.values, []).append(chosen or stored)
            continue
        scales = kept[piece.name]
        assert place.weight_scale is not None
        assert place.activation_scale is not None
        types.setdefault(place.weight_scale, []).append(torch.bfloat16 if is_fitted else scales.weight.dtype)
        if scales.activation is not None:
            types.setdefault(place.activation_scale, []).append(scales.activation.dtype)
    specs = {}
    for name, spec in table.tensors().items():
        if name in types:
            widest = functools.reduce(torch.promote_types, types[name])
            spelled = _SCALES_SPELLED if spec.kind == "scalar" else _SPELLED
            specs[name] = dataclasses.replace(spec, dtype=spelled[widest])
        elif not spec.is_optional:
            specs[name] = spec
    return specs
