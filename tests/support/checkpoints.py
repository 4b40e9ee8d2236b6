"""Small checkpoints and adapters on disk, and the comparison of logits that their tests share."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from support.models import tiny_config, tiny_model
from torch import Tensor

from ms4_train.config.schema import AdapterSection
from ms4_train.model import Mistral4ForCausalLM, SequenceLayout, TextConfig
from ms4_train.weights import save_model

ATTENTION = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "self_attn.o_proj"]
SHARED = ["shared_experts.gate_proj", "shared_experts.up_proj", "shared_experts.down_proj"]
STACKS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def full_section(**overrides: Any) -> AdapterSection:
    """An adapter of rank 3 on everything that can be adapted: the rank divides neither 8 experts nor any width."""
    values: dict[str, Any] = {"r": 3, "lora_alpha": 7.0, "target_modules": ATTENTION + SHARED, "target_parameters": STACKS}
    return AdapterSection(**(values | overrides))


def saved_tiny(folder: Path, config: TextConfig | None = None, seed: int = 0, **options: Any) -> Mistral4ForCausalLM:
    """Write a tiny random checkpoint into ``folder`` and return its model."""
    model = tiny_model(config or tiny_config(), seed)
    save_model(model.state_dict(), folder, config=model.config, **options)
    return model


def some_ids(count: int = 48, vocab_size: int = 512) -> Tensor:
    """Token ids that do not change from run to run."""
    return torch.randint(0, vocab_size, (count,), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def our_logits(model: Mistral4ForCausalLM, ids_t: Tensor | None = None) -> Tensor:
    """Logits of one document; default: ``some_ids``."""
    ids_t = some_ids() if ids_t is None else ids_t
    return model.logits(model(ids_t, SequenceLayout.from_lengths([len(ids_t)])))


@torch.no_grad()
def their_logits(model: Any) -> Tensor:
    """The same from a transformers (or PEFT) model."""
    return model.eval()(some_ids()[None], use_cache=False).logits[0]


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, as a share of the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def randomise(parameters: Mapping[str, Tensor], seed: int = 11, std: float = 0.2) -> None:
    """Fill adapter parameters so that none of their products is zero."""
    generator = torch.Generator().manual_seed(seed)
    for name in sorted(parameters):
        parameters[name].copy_(torch.randn(parameters[name].shape, generator=generator) * std)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file as the format's description says, so that reading is tested against bytes not made by the writer under test."""
    header: dict[str, Any] = {}
    data = b""
    kinds = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int8: "I8", torch.float8_e4m3fn: "F8_E4M3"}
    kinds |= {torch.uint8: "U8", torch.int32: "I32", torch.float64: "F64", torch.float8_e5m2: "F8_E5M2"}
    for name, tensor in tensors.items():
        raw = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def rewrite(folder: Path, change: Any, file: str = "") -> None:
    """Pass the tensors of the folder's only safetensors file through ``change`` (a function of the dict, in place); write them back."""
    path = folder / file if file else next(path for path in folder.iterdir() if path.suffix == ".safetensors")
    tensors = load_file(path)
    change(tensors)
    write_safetensors(path, tensors)


def edit_json(path: Path, change: Any) -> None:
    """Pass a JSON file's object through ``change`` (in place) and write it back."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
