"""The model that a rank of a run will hold, without its memory: every tensor is there, on the meta device.

Built by the same modules, adapters and rules as the one that is trained, so that sizes counted on it are those of the run. A test compares
the two tensor by tensor. Exercise it: ``pytest tests/ms4_train/planning/test_planned_model.py``.

Not covered: values, and adapters to go on with (``adapter.init_from``), whose file alone knows rank and targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ms4_kernels.quantised import Fp8Weight, Nvfp4Weight
from ms4_train.adapters import attach
from ms4_train.config.schema import SftRun
from ms4_train.model import Mistral4ForCausalLM
from ms4_train.model.quantised import put_quantised
from ms4_train.weights import open_checkpoint
from ms4_train.weights.layouts.pieces import ModelConfig, Piece
from ms4_train.weights.layouts.tables import NVFP4_GROUP, Encoding, Layout, LayoutTable, is_vision_name
from ms4_train.weights.reading.loading import empty_model, put_parameter


@dataclass(frozen=True)
class Base:
    """The model that a run starts from, as far as sizes go: its configuration, and the layout that its files have."""

    config: ModelConfig
    layout: Layout


def read_base(folder: str | Path) -> Base:
    """Look at a checkpoint's configuration and headers.

    Raises:
        WeightsError: it cannot be used.
        UntrustedInputError: a file is cut off or damaged.
    """
    checkpoint = open_checkpoint(folder)
    try:
        return Base(checkpoint.config, checkpoint.layout)
    finally:
        checkpoint.close()


def planned_model(run: SftRun, base: Base, *, images: bool = True) -> Mistral4ForCausalLM:
    """The model of one rank, on the meta device: its experts only, quantised where it stays so, with what is trained.

    Args:
        run: the whole run; ``parallel.expert_parallel_size`` must divide the experts.
        base: what it starts from.
        images: whether training rows hold any; without, a full fine-tune leaves the vision as it is.

    Raises:
        AdapterError: a target that matches nothing, or an adapter that cannot be computed on this model.
    """
    vision = base.config.vision if run.model.vision == "auto" else None
    model = empty_model(base.config.text, vision=vision)
    dtype = getattr(torch, run.model.dtype)
    experts = base.config.text.n_routed_experts // run.parallel.expert_parallel_size
    keeps_codes = not run.model.dequantizes(default=run.adapter is None)
    encodings = _encodings(base) if keeps_codes else {}
    for name, parameter in list(model.named_parameters()):
        shape = (experts, *parameter.shape[1:]) if parameter.ndim == 3 else tuple(parameter.shape)
        encoding = encodings.get(name, "plain")
        if encoding == "plain":
            put_parameter(model, name, torch.empty(shape, dtype=dtype, device="meta"))
        else:
            groups = 2 if name.endswith("gate_up_proj") and not base.layout.is_hf else 1
            put_quantised(model, name, _codes(shape, encoding, groups), dtype)
    if run.adapter is not None:
        attach(model, run.adapter)
    else:
        for name, parameter in model.named_parameters():
            is_router = name.endswith("mlp.gate.weight")
            if (is_router and not run.training.train_router) or (is_vision_name(name) and not images):
                parameter.requires_grad_(False)
    return model


def _encodings(base: Base) -> dict[str, Encoding]:
    """How the files hold each parameter; a stack's experts are alike."""
    table = LayoutTable(base.layout, base.config)
    return {_parameter_of(piece): table.place(piece).encoding for piece in table.pieces().values()}


def _parameter_of(piece: Piece) -> str:
    if piece.expert is None:
        return piece.name
    stem = piece.name.partition(".experts.")[0] + ".experts."
    return stem + ("down_proj" if piece.matrix == "down_proj" else "gate_up_proj")


def _codes(shape: tuple[int, ...], encoding: Encoding, groups: int) -> Fp8Weight | Nvfp4Weight:
    def meta(*sizes: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        return torch.empty(sizes, dtype=dtype, device="meta")

    scale = meta(*shape[:-2], groups, dtype=torch.float32)
    if encoding == "fp8":
        return Fp8Weight(meta(*shape), scale)
    return Nvfp4Weight(meta(*shape[:-1], shape[-1] // 2), meta(*shape[:-1], shape[-1] // NVFP4_GROUP), scale)
