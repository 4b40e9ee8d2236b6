"""Folders of one tiny random multimodal model in every public layout, written without ``ms4_train``.

``hf_folder``, ``native_folder``, ``native_fp8_folder``, ``hf_fp8_folder``, ``nvfp4_folder`` and ``both_folder`` each write a folder and
return its stored tensors by name. All of them start from ``reference_pieces(seed, dtype)``; ``fp8_reference_pieces``,
``hf_fp8_reference_pieces`` and ``nvfp4_reference_pieces`` say what the quantised ones mean. Tests of these: ``tests/test_layouts.py``.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from support.layouts_configs import NATIVE_FP8_QUANTIZATION, hf_config, params
from support.layouts_pieces import (
    TINY,
    Pieces,
    Tiny,
    hf_name,
    hf_tensors,
    native_name,
    native_tensors,
    permute_vision_rows,
    reference_pieces,
)
from support.layouts_quantised import (
    fp8_reference_pieces,
    hf_fp8_reference_pieces,
    hf_fp8_tensors,
    native_fp8_tensors,
    nvfp4_quantization_config,
    nvfp4_reference_pieces,
    nvfp4_tensors,
)
from torch import Tensor

__all__ = [
    "TINY",
    "Pieces",
    "Tiny",
    "both_folder",
    "fp8_reference_pieces",
    "hf_config",
    "hf_folder",
    "hf_fp8_folder",
    "hf_fp8_reference_pieces",
    "hf_fp8_tensors",
    "hf_name",
    "hf_tensors",
    "native_folder",
    "native_fp8_folder",
    "native_fp8_tensors",
    "native_name",
    "native_tensors",
    "nvfp4_folder",
    "nvfp4_quantization_config",
    "nvfp4_reference_pieces",
    "nvfp4_tensors",
    "params",
    "permute_vision_rows",
    "reference_pieces",
    "write_shards",
]

SYSTEM_PROMPT = "You are a tiny model, released for tests.\n"


@dataclasses.dataclass(frozen=True)
class _Made:
    """What every folder starts from."""

    tiny: Tiny
    pieces: Pieces
    vision: bool
    tokenizer_file: Path | None


def _make(
    path: Path, *, seed: int, dtype: torch.dtype, vision: bool, tokenizer: bool, tiny: Tiny, pieces: Mapping[str, Tensor] | None
) -> _Made:
    tokenizer_file = None
    if tokenizer:
        from support.tokenizers import tiny_tokenizer
        from support.tokenizers import tokenizer_file as file_of_ranks

        tokenizer_file = file_of_ranks(400)
        tiny = dataclasses.replace(tiny, vocab_size=tiny_tokenizer(400).vocab_size)
    path.mkdir(parents=True, exist_ok=True)
    found = dict(pieces) if pieces is not None else reference_pieces(seed, dtype, vision=vision, tiny=tiny)
    return _Made(tiny, found, vision, tokenizer_file)


def hf_folder(
    path: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    style: str = "disk",
    vision: bool = True,
    shards: int = 1,
    tokenizer: bool = False,
    tiny: Tiny = TINY,
    pieces: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The HF layout in one type.

    Args:
        path: folder to write into.
        seed: of the random weights.
        dtype: of the stored tensors.
        style: ``disk`` names tensors as the public repository does, ``transformers`` as its classes do, ``text`` leaves the vision out.
        vision: whether there are vision weights; with ``disk`` and False, the text configuration stands alone with on-disk names.
        shards: files; more than one come with an index.
        tokenizer: also write a tiny ``tekken.json``, whose size becomes the vocabulary's.
        tiny: the sizes.
        pieces: weights to store in place of the random ones; must have ``tiny``'s sizes.
    """
    vision = vision and style != "text"
    made = _make(path, seed=seed, dtype=dtype, vision=vision, tokenizer=tokenizer, tiny=tiny, pieces=pieces)
    stored = hf_tensors(made.pieces, style)
    write_shards(path, stored, "model", shards, metadata={"format": "pt"})
    _write_json(path / "config.json", hf_config(made.tiny, dtype=dtype, vision=vision))
    _write_companions(path, made, hf=True)
    return stored


def native_folder(
    path: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    vision: bool = True,
    shards: int = 1,
    tokenizer: bool = False,
    tiny: Tiny = TINY,
    pieces: Mapping[str, Tensor] | None = None,
    apply_scale: bool = False,
) -> dict[str, Tensor]:
    """The Mistral-native layout in one type; arguments as of :func:`hf_folder`."""
    made = _make(path, seed=seed, dtype=dtype, vision=vision, tokenizer=tokenizer, tiny=tiny, pieces=pieces)
    stored = native_tensors(made.pieces, made.tiny)
    write_shards(path, stored, "consolidated", shards)
    _write_json(path / "params.json", params(made.tiny, vision=vision, apply_scale=apply_scale))
    _write_companions(path, made)
    return stored


def native_fp8_folder(
    path: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    scale_dtype: torch.dtype = torch.bfloat16,
    vision: bool = True,
    shards: int = 1,
    tokenizer: bool = False,
    tiny: Tiny = TINY,
    pieces: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The native FP8 layout; ``scale_dtype`` is the type of its scales, which nobody has published."""
    made = _make(path, seed=seed, dtype=dtype, vision=vision, tokenizer=tokenizer, tiny=tiny, pieces=pieces)
    stored = native_fp8_tensors(made.pieces, made.tiny, scale_dtype)
    write_shards(path, stored, "consolidated", shards)
    _write_json(path / "params.json", {**params(made.tiny, vision=vision), "quantization": NATIVE_FP8_QUANTIZATION})
    _write_companions(path, made)
    return stored


def hf_fp8_folder(
    path: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    scale_dtype: torch.dtype = torch.bfloat16,
    style: str = "disk",
    vision: bool = True,
    shards: int = 1,
    tokenizer: bool = False,
    tiny: Tiny = TINY,
    pieces: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The HF FP8 layout, with the expert scales that were fused on the way from the native one."""
    vision = vision and style != "text"
    made = _make(path, seed=seed, dtype=dtype, vision=vision, tokenizer=tokenizer, tiny=tiny, pieces=pieces)
    stored = hf_fp8_tensors(made.pieces, made.tiny, scale_dtype, style)
    write_shards(path, stored, "model", shards, metadata={"format": "pt"})
    _write_json(path / "config.json", hf_config(made.tiny, dtype=dtype, vision=vision, fp8=True))
    _write_companions(path, made, hf=True)
    return stored


def nvfp4_folder(
    path: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    vision: bool = True,
    shards: int = 1,
    tokenizer: bool = False,
    tiny: Tiny = TINY,
    pieces: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The NVFP4 layout: native names, no ``config.json``; with several shards, the last one holds every ``input_global_scale``."""
    made = _make(path, seed=seed, dtype=dtype, vision=vision, tokenizer=tokenizer, tiny=tiny, pieces=pieces)
    stored = nvfp4_tensors(made.pieces, made.tiny)
    write_shards(path, stored, "consolidated", shards, last=".input_global_scale")
    _write_json(path / "params.json", {**params(made.tiny, vision=vision), "quantization_config": nvfp4_quantization_config()})
    _write_companions(path, made)
    return stored


def both_folder(path: Path, **options: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """FP8 in the HF and the native layout side by side, as the public repository has it; returns both sets of tensors, HF first."""
    return hf_fp8_folder(path, **options), native_fp8_folder(path, **options)


def write_shards(
    path: Path,
    tensors: Mapping[str, Tensor],
    stem: str,
    shards: int = 1,
    *,
    metadata: dict[str, str] | None = None,
    last: str | None = None,
) -> None:
    """``STEM.safetensors``, or ``STEM-00001-of-0000N.safetensors`` with ``STEM.safetensors.index.json``.

    Args:
        path: the folder.
        tensors: what to write, dealt out in order.
        stem: ``model`` or ``consolidated``.
        shards: number of files.
        metadata: of each file.
        last: tensors whose names end so all go into the last of several files.
    """
    if shards == 1:
        save_file(dict(tensors), path / f"{stem}.safetensors", metadata=metadata)
        return
    late = [name for name in tensors if last is not None and name.endswith(last)]
    early = [name for name in tensors if name not in set(late)]
    groups = shards - bool(late)
    parts = [early[len(early) * part // groups : len(early) * (part + 1) // groups] for part in range(groups)] + ([late] if late else [])
    weight_map = {}
    for number, names in enumerate(parts, 1):
        file = f"{stem}-{number:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name] for name in names}, path / file, metadata=metadata)
        weight_map |= dict.fromkeys(names, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(path / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_companions(path: Path, made: _Made, *, hf: bool = False) -> None:
    (path / "SYSTEM_PROMPT.txt").write_text(SYSTEM_PROMPT)
    if hf:
        ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 11}
        _write_json(path / "generation_config.json", {**ids, "max_length": made.tiny.max_position_embeddings})
    if made.tokenizer_file is not None:
        shutil.copy(made.tokenizer_file, path / "tekken.json")


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
