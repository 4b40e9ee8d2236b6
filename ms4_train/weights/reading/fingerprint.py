"""A cheap identity of a model: the same for the same values, whatever the layout, files, prefixes and types they are stored in.

SHA-256 over what the configuration computes, and every piece's name, shape and sampled values: all of a small piece, short runs at
fixed places of a large one, as fp32. Text and vision have one each, and the whole is both: an adapter of the text alone fits whatever sees
before it. Quantised values count as what they are in bf16, so an FP8 checkpoint and its bf16 conversion are one model; Hugging Face's FP8
differs from Mistral's, whose experts' scales it fused. Adapters and run state record the whole, and are refused on another base.
Exercise it: ``pytest tests/ms4_train/weights/reading/test_fingerprint.py``.

Not covered: a change that touches no sampled value; this is an identity, not a checksum.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ms4_kernels.quantised import dequantise_fp8, dequantise_nvfp4
from ms4_train.model import TextConfig
from ms4_train.weights.layouts.detect import FamilyChoice
from ms4_train.weights.layouts.pieces import Part, Piece
from ms4_train.weights.layouts.tables import NVFP4_GROUP
from ms4_train.weights.reading.checkpoint import DTYPES, Checkpoint, open_checkpoint

WHOLE_VALUES = 1 << 15
"""Pieces up to this size are hashed whole."""
RUNS = 4
RUN_VALUES = 64
"""A multiple of the 16 columns that share an NVFP4 block scale, so that a run needs whole blocks."""
_VERSION = b"ms4 fingerprint 2"
_VISION_VERSION = b"ms4 vision fingerprint 1"
_NOT_COMPUTED = {"image_size"}  # of preprocessing
_THREADS = 8  # on a cold disk the reads wait, and waiting is what is shared
_BATCH = 64


def base_fingerprint(folder: str | Path, *, family: FamilyChoice = "auto") -> str:
    """The identity of a checkpoint, as ``sha256:`` and 64 hexadecimal digits; with vision, twice, joined by ``+``.

    Args:
        folder: of any public layout.
        family: which files to read where the folder holds Hugging Face's and Mistral's.

    Raises:
        WeightsError: the checkpoint cannot be read.
        UntrustedInputError: a file is cut off or damaged.
    """
    checkpoint = open_checkpoint(folder, family=family)
    try:
        return whole_fingerprint(checkpoint)
    finally:
        checkpoint.close()


def whole_fingerprint(checkpoint: Checkpoint) -> str:
    """The identity of an open checkpoint: its text model's, and its vision's behind a ``+`` where it has one.

    Raises:
        WeightsError: the checkpoint cannot be read.
    """
    vision = vision_fingerprint(checkpoint)
    return fingerprint(checkpoint) + (f"+{vision}" if vision is not None else "")


def is_same_base(recorded: str, found: str, *, vision: bool) -> bool:
    """Whether two whole fingerprints mean one base. The text must agree, and with ``vision`` what both say of it."""
    texts, visions = zip(*((text, seen) for text, _, seen in (value.partition("+") for value in (recorded, found))), strict=True)
    return texts[0] == texts[1] and not (vision and all(visions) and visions[0] != visions[1])


def fingerprint(checkpoint: Checkpoint) -> str:
    """The identity of an open checkpoint's text model; the vision does not enter, see ``vision_fingerprint``.

    Raises:
        WeightsError: the checkpoint cannot be read.
    """
    pieces = [piece for piece in checkpoint.pieces().values() if piece.part is not Part.VISION]
    return _identity(checkpoint, pieces, computed_constants(checkpoint.config.text), _VERSION)


def vision_fingerprint(checkpoint: Checkpoint) -> str | None:
    """The identity of an open checkpoint's tower, patch merger and projector; None for a text model.

    Raises:
        WeightsError: the checkpoint cannot be read.
    """
    vision = checkpoint.config.vision
    if vision is None:
        return None
    constants = {key: value for key, value in dataclasses.asdict(vision).items() if key not in _NOT_COMPUTED}
    pieces = [piece for piece in checkpoint.pieces().values() if piece.part is Part.VISION]
    return _identity(checkpoint, pieces, constants | {"rope_theta": float(vision.rope_theta)}, _VISION_VERSION)


def _identity(checkpoint: Checkpoint, pieces: list[Piece], constants: dict[str, Any], version: bytes) -> str:
    digest = hashlib.sha256(version)
    digest.update(json.dumps(constants, sort_keys=True).encode())

    def digests(batch: list[Piece]) -> list[bytes]:
        return [hashlib.sha256(_sampled(checkpoint, piece).numpy().data).digest() for piece in batch]

    with ThreadPoolExecutor(_THREADS) as pool:
        batches = [pieces[start : start + _BATCH] for start in range(0, len(pieces), _BATCH)]
        for batch, hashes in zip(batches, pool.map(digests, batches), strict=True):
            for piece, values in zip(batch, hashes, strict=True):
                digest.update(f"\n{piece.name} {list(piece.shape)}\n".encode() + values)
    return f"sha256:{digest.hexdigest()}"


def computed_constants(config: TextConfig) -> dict[str, Any]:
    """What of a configuration enters the arithmetic, in one spelling: two configurations that compute the same give the same."""
    rope = config.rope_parameters
    sizes = (
        *("vocab_size", "hidden_size", "moe_intermediate_size", "num_hidden_layers", "num_attention_heads", "n_shared_experts"),
        *("n_routed_experts", "num_experts_per_tok", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
    )
    yarn = ("rope_theta", "factor", "beta_fast", "beta_slow", "llama_4_scaling_beta")
    return {
        **{name: int(getattr(config, name)) for name in sizes},
        **{name: float(getattr(rope, name)) for name in yarn},
        "original_max_position_embeddings": int(rope.original_max_position_embeddings),
        "truncate": rope.truncate,
        "cos_sin_factor": float(rope.cos_sin_factor),
        "attention_scale": float(config.attention_scale),
        "norm_topk_prob": config.norm_topk_prob,
        "routed_scaling_factor": float(config.routed_scaling_factor),
        "rms_norm_eps": float(config.rms_norm_eps),
    }


def _runs(numel: int) -> list[tuple[int, int]]:
    """Places of the samples, [start, stop) in the flat piece: the first values, the last (but for a block), and evenly between."""
    if numel <= WHOLE_VALUES:
        return [(0, numel)]
    last = (numel - RUN_VALUES) // NVFP4_GROUP
    starts = [index * last // (RUNS - 1) * NVFP4_GROUP for index in range(RUNS)]
    return [(start, start + RUN_VALUES) for start in starts]


def _sampled(checkpoint: Checkpoint, piece: Piece) -> Tensor:
    """The sampled values as fp32 [samples]."""
    place = checkpoint.place(piece)
    runs = _runs(piece.numel)
    span = checkpoint.span(piece)
    if span is None:  # the rows lie in another order; only vision matrices do, which are small
        values = checkpoint.read_piece(piece)
        assert isinstance(values, Tensor), piece.name
        return torch.cat([values.flatten()[start:stop] for start, stop in runs]).float()
    stored = checkpoint.stored[place.values]
    base = span[1] - stored.info.start

    def read(name: str, first: int, per_byte: int, itemsize: int = 1) -> Tensor:
        parts = [
            checkpoint.read_bytes(name, first + start // per_byte * itemsize, (stop - start) // per_byte * itemsize) for start, stop in runs
        ]
        return torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8)

    scale = checkpoint.weight_scale(piece)
    if place.encoding == "plain" or scale is None:
        dtype = DTYPES[stored.info.dtype]
        return read(place.values, base, 1, dtype.itemsize).view(dtype).float()
    if place.encoding == "fp8":
        return dequantise_fp8(read(place.values, base, 1), scale, torch.bfloat16).float()
    assert place.block_scale is not None
    codes, blocks = read(place.values, base, 2), read(place.block_scale, 0, NVFP4_GROUP)
    return dequantise_nvfp4(codes[None], blocks[None], scale.float(), torch.bfloat16).float().flatten()
