"""Tiny models with quantised weights, laid out as the releases lay theirs, and plain models that compute the same."""

from __future__ import annotations

from typing import Literal

import torch
from support.models import tiny_config, tiny_model
from support.quantised import nvfp4_weight
from torch import Tensor

from ms4_kernels.quantised import Fp8Weight, QuantisedWeight, fit_fp8_scale, quantise_fp8
from ms4_train.model import Mistral4ForCausalLM, TextConfig
from ms4_train.model.quantised import QuantisedLinear, put_quantised, quantised_modules

Kind = Literal["fp8", "nvfp4"]
KINDS: tuple[Kind, ...] = ("fp8", "nvfp4")


def quantised_tiny(kind: Kind, config: TextConfig | None = None, seed: int = 0, dtype: torch.dtype = torch.float32) -> Mistral4ForCausalLM:
    """FP8: attention, shared and routed experts. NVFP4: shared and routed experts only. Everything else in ``dtype``."""
    model = tiny_model(config or tiny_config(), seed, dtype)
    torch.manual_seed(seed)
    for name, parameter in list(model.named_parameters()):
        if is_quantised_in(kind, name):
            put_quantised(model, name, _quantised(kind, name, parameter.detach()), dtype)
    return model


def is_quantised_in(kind: Kind, name: str) -> bool:
    """Whether a layout of this kind quantises the parameter."""
    return ".mlp.experts." in name or ".shared_experts." in name or (kind == "fp8" and ".self_attn." in name and "norm" not in name)


def dequantised_twin(model: Mistral4ForCausalLM) -> Mistral4ForCausalLM:
    """The same weights as plain parameters."""
    twin = Mistral4ForCausalLM(model.config).to(model.lm_head.weight.dtype)
    values: dict[str, Tensor] = dict(model.named_parameters())
    for name, module in quantised_modules(model):
        values[f"{name}.weight" if isinstance(module, QuantisedLinear) else name] = module.value().dequantise(module.dtype)
    twin.load_state_dict(values)
    return twin.train(model.training)


def _quantised(kind: Kind, name: str, value: Tensor) -> QuantisedWeight:
    groups = 2 if name.endswith("gate_up_proj") else 1
    if kind == "nvfp4":  # random codes serve as well as fitted ones, made about as large as the weight was
        weight = nvfp4_weight(*value.shape, groups=groups)
        ratio = value.std() / weight.dequantise(torch.float32).std()
        return type(weight)(weight.codes, weight.block_scale, weight.global_scale / ratio)
    parts = value.float().unflatten(-2, (groups, -1))
    scale = fit_fp8_scale(parts)
    return Fp8Weight(quantise_fp8(parts, scale[..., None, None]).view(value.shape), scale)
