"""The public layouts of this model as tables: which tensors a checkpoint stores, and where among them each piece lies.

Five layouts (spec section 3): Hugging Face and Mistral-native in bf16 (or wider), both again in FP8, and native names in NVFP4. The tables
come from the configuration alone, so a checkpoint's headers can be checked, or written, without a single weight in memory.
Exercise it: ``pytest tests/ms4_train/weights/layouts/test_tables.py``.

Not covered: values, and files (``reader``, ``convert``).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from ms4_train.weights.layouts.native_names import native_name
from ms4_train.weights.layouts.pieces import ModelConfig, Part, Piece, pieces

NVFP4_GROUP = 16
"""Columns that share one block scale."""


class Layout(StrEnum):
    """A public way in which this model is stored."""

    HF = "hf"
    NATIVE = "native"
    HF_FP8 = "hf-fp8"
    NATIVE_FP8 = "native-fp8"
    NVFP4 = "nvfp4"

    @property
    def is_hf(self) -> bool:
        """Whether names are Hugging Face's and routed experts are stacked."""
        return self in (Layout.HF, Layout.HF_FP8)

    @property
    def encoding(self) -> Encoding:
        """How the quantised pieces of the layout are stored; ``plain`` where there are none."""
        return {Layout.HF_FP8: "fp8", Layout.NATIVE_FP8: "fp8", Layout.NVFP4: "nvfp4"}.get(self, "plain")  # type: ignore[return-value]


Encoding = Literal["plain", "fp8", "nvfp4"]
Kind = Literal["values", "fp8", "fp4", "block scale", "scalar"]
"""What a stored tensor holds: ordinary values, FP8 codes, packed FP4 codes, e4m3 block scales, or one scale per matrix."""


_VISION_PREFIXES = ("vision_tower.", "multi_modal_projector.")


def is_vision_name(name: str) -> bool:
    """Whether one of our names is of tower, patch merger or projector."""
    return name.startswith(_VISION_PREFIXES)


class HfNames(StrEnum):
    """The three prefixes in which Hugging Face files name the text network."""

    TEXT = "text"
    """``model.layers``, ``lm_head``: text-only checkpoints."""
    DISK = "disk"
    """``language_model.model.layers``, ``language_model.lm_head``, ``vision_tower``: the public repository's files."""
    TRANSFORMERS = "transformers"
    """``model.language_model.layers``, ``lm_head``, ``model.vision_tower``: transformers 5 in memory."""

    def stored(self, name: str) -> str:
        """The stored form of our name."""
        if self is HfNames.TEXT:
            return name
        is_vision = is_vision_name(name)
        if self is HfNames.DISK:
            return name if is_vision else f"language_model.{name}"
        if is_vision:
            return f"model.{name}"
        return f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name


@dataclass(frozen=True)
class TensorSpec:
    """What a layout stores under a name. ``dtype`` is safetensors' spelling, the one written; readers take wider ones of the kind too.

    Attributes:
        is_optional: a checkpoint may lack it (activation scales: with dynamic activation quantisation there are none).
    """

    dtype: str
    shape: tuple[int, ...]
    kind: Kind = "values"
    is_optional: bool = False


@dataclass(frozen=True)
class Place:
    """Where a piece lies in a layout: the stored tensor of its values or codes, and its part of that tensor.

    Attributes:
        values: name of the stored tensor that holds the values, FP8 codes or packed FP4 codes.
        expert: index on dim 0 where ``values`` is a stack of experts, else None.
        rows: the piece's rows [a, b) within its expert (or within the whole tensor when ``expert`` is None); None for all.
        encoding: how the values are stored.
        weight_scale: FP8: the factor; NVFP4: the global scale, a divisor. Scalars, or per expert along dim 0 (index ``expert``).
        activation_scale: scale of the layer's input, kept and never used here.
        block_scale: NVFP4: e4m3 factors, one per 16 columns.
        is_permuted: rows are in native rotary order while the piece's are in Hugging Face's (vision q and k; spec section 3.1).
    """

    values: str
    expert: int | None = None
    rows: tuple[int, int] | None = None
    encoding: Encoding = "plain"
    weight_scale: str | None = None
    activation_scale: str | None = None
    block_scale: str | None = None
    is_permuted: bool = False


@dataclass(frozen=True)
class LayoutTable:
    """One layout of one model.

    Attributes:
        hf_names: prefix of Hugging Face names; unused by native layouts.
        dtype: type of the values that are not quantised, as safetensors spells it.
        scale_dtype: type of FP8 scales.
    """

    layout: Layout
    config: ModelConfig
    hf_names: HfNames = HfNames.TEXT
    dtype: str = "BF16"
    scale_dtype: str = "BF16"

    def place(self, piece: Piece) -> Place:
        """Where ``piece`` lies."""
        encoding = self.layout.encoding if self._is_quantised(piece) else "plain"
        return self._hf_place(piece, encoding) if self.layout.is_hf else self._native_place(piece, encoding)

    def tensors(self) -> dict[str, TensorSpec]:
        """Name -> specification of everything the layout stores, in the order of the network, scales behind their matrix."""
        return dict(self._specs)

    def pieces(self) -> dict[str, Piece]:
        """Our name -> piece, in the order of the network."""
        return dict(self._pieces)

    @functools.cached_property
    def _pieces(self) -> dict[str, Piece]:
        return {piece.name: piece for piece in pieces(self.config)}

    @functools.cached_property
    def _specs(self) -> dict[str, TensorSpec]:
        specs: dict[str, TensorSpec] = {}
        for piece in self._pieces.values():
            for name, spec in self._piece_specs(piece):
                specs.setdefault(name, spec)
        return specs

    def _is_quantised(self, piece: Piece) -> bool:
        parts = (Part.SHARED, Part.EXPERT) if self.layout is Layout.NVFP4 else (Part.ATTENTION, Part.SHARED, Part.EXPERT)
        return self.layout.encoding != "plain" and piece.part in parts

    def _native_place(self, piece: Piece, encoding: Encoding) -> Place:
        weight = native_name(piece.name)
        stem = weight.removesuffix(".weight")
        if encoding == "fp8":
            return Place(weight, encoding="fp8", weight_scale=f"{stem}.qscale_weight", activation_scale=f"{stem}.qscale_act")
        if encoding == "nvfp4":
            return Place(
                f"{stem}.weight_packed",
                encoding="nvfp4",
                weight_scale=f"{stem}.weight_global_scale",
                activation_scale=f"{stem}.input_global_scale",
                block_scale=f"{stem}.weight_scale",
            )
        is_permuted = piece.part is Part.VISION and piece.name.endswith(("attention.q_proj.weight", "attention.k_proj.weight"))
        return Place(weight, is_permuted=is_permuted)

    def _hf_place(self, piece: Piece, encoding: Encoding) -> Place:
        if piece.part is not Part.EXPERT:
            stored = self.hf_names.stored(piece.name)
            if encoding == "plain":
                return Place(stored)
            stem = stored.removesuffix(".weight")
            return Place(stored, encoding="fp8", weight_scale=f"{stem}.weight_scale_inv", activation_scale=f"{stem}.activation_scale")
        width = self.config.text.moe_intermediate_size
        stack, rows = {
            "gate_proj": ("gate_up_proj", (0, width)),
            "up_proj": ("gate_up_proj", (width, 2 * width)),
            "down_proj": ("down_proj", None),
        }[piece.matrix]
        stored = self.hf_names.stored(f"model.layers.{piece.layer}.mlp.experts.{stack}")
        if encoding == "plain":
            return Place(stored, piece.expert, rows)
        return Place(stored, piece.expert, rows, "fp8", f"{stored}_scale_inv", f"{stored}_activation_scale")

    def _piece_specs(self, piece: Piece) -> Iterator[tuple[str, TensorSpec]]:
        place = self.place(piece)
        is_stacked = place.expert is not None
        shape = piece.shape
        if is_stacked:
            rows = shape[0] if place.rows is None else 2 * shape[0]
            shape = (self.config.text.n_routed_experts, rows, shape[1])
        if place.encoding == "plain":
            yield place.values, TensorSpec(self.dtype, shape)
            return
        assert place.weight_scale is not None
        assert place.activation_scale is not None
        if place.encoding == "fp8":
            yield place.values, TensorSpec("F8_E4M3", shape, "fp8")
            count = self.config.text.n_routed_experts
            yield place.weight_scale, TensorSpec(self.scale_dtype, (count, 1, 1) if is_stacked else (), "scalar")
            yield place.activation_scale, TensorSpec(self.scale_dtype, (count,) if is_stacked else (), "scalar", is_optional=True)
            return
        assert place.block_scale is not None
        yield place.values, TensorSpec("U8", (shape[0], shape[1] // 2), "fp4")
        yield place.block_scale, TensorSpec("F8_E4M3", (shape[0], shape[1] // NVFP4_GROUP), "block scale")
        yield place.weight_scale, TensorSpec("F32", (1,), "scalar")
        # The release stores it in fp32 for routed experts and in bf16 for the shared one (spec section 3.4).
        yield place.activation_scale, TensorSpec("F32" if piece.part is Part.EXPERT else "BF16", (1,), "scalar", is_optional=True)
