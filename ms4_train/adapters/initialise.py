"""Where adapters start: PEFT's initialisations that need no data, each from a generator of its own.

Values depend on a seed and each parameter's name only, so that processes which hold different experts agree. ``pissa`` and ``olora`` take
the leading part of each weight as the adapter and leave the rest as the base, so that the model computes what it did; ``plain_adapter``
turns what was trained into an adapter of the untouched base again, of twice the rank: ``W - B0 A0 + B A = W + [B, -B0] [A; A0]``.
Exercise it: ``pytest tests/ms4_train/adapters/test_initialise.py``.

Shape suffixes: e experts, r rank, i inputs, o outputs, k half the rank.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ms4_train.adapters.adapted import wide
from ms4_train.adapters.linear_lora import LoraLinear
from ms4_train.adapters.names import DEFAULT_ADAPTER, STACKS_OF, adapted_name, adapter_of
from ms4_train.config.schema import AdapterSection
from ms4_train.weights.reading.loading import first_expert


@torch.no_grad()
def fill(model: nn.Module, adapter: str, start: str, *, seed: int) -> None:
    """Give a fresh adapter, whose parameters exist, its first values; B is zero already.

    Args:
        model: carries the adapter.
        adapter: its name.
        start: ``init_lora_weights`` of its section.
        seed: decides the values, with the names.
    """
    for name, parameter in model.named_parameters():
        if adapter_of(name) != adapter or parameter.is_meta:  # a model without memory is there to be counted
            continue
        if STACKS_OF in name:
            if "_a_" in name.rpartition(".")[2]:
                _fill_stack(parameter, first_expert(model.get_submodule(name.partition(".lora.")[0])), start, _generator(seed, name))
        elif ".lora_embedding_B." in name:
            parameter.copy_(torch.randn(parameter.shape, generator=_generator(seed, name)))
        elif ".lora_A." in name:
            _fill_pair(model.get_submodule(adapted_name(name)), adapter, parameter, start, _generator(seed, name))


def plain_adapter(model: nn.Module, section: AdapterSection, tensors: Mapping[str, Tensor]) -> tuple[AdapterSection, dict[str, Tensor]]:
    """An adapter of the untouched base that equals the trained one.

    Only starts that change the base (``section.changes_base``) differ: their rank doubles, and alpha follows so that the scale stays. In
    bf16 the base in memory was rounded when the start was taken out of it, which the untouched base was not.

    Args:
        model: carries the adapter ``default``.
        section: what it was attached with.
        tensors: full values under the names of ``adapter_tensors``, on the CPU.

    Returns:
        (section, tensors) as they are to be saved.
    """
    if not section.changes_base:
        return section, dict(tensors)
    widened = dict(tensors)
    for module_name, module in model.named_modules():
        if not isinstance(module, LoraLinear) or DEFAULT_ADAPTER not in module.starts:
            continue
        a_ri, b_or = module.starts[DEFAULT_ADAPTER]
        for side, start, axis in (("A", a_ri, 0), ("B", -b_or, 1)):
            name = f"{module_name}.lora_{side}.{DEFAULT_ADAPTER}.weight"
            widened[name] = torch.cat([tensors[name], start.to(tensors[name])], dim=axis)
    factor = math.sqrt(2) if section.use_rslora else 2.0
    changes = {
        "r": 2 * section.r,
        "lora_alpha": factor * section.lora_alpha,
        "rank_pattern": {key: 2 * rank for key, rank in section.rank_pattern.items()},
        "alpha_pattern": {key: factor * alpha for key, alpha in section.alpha_pattern.items()},
        "init_lora_weights": "default",
    }
    return section.model_copy(update=changes), widened


def _fill_stack(a_eri: Tensor, first: int, start: str, generator: torch.Generator) -> None:
    for expert in range(first + a_eri.shape[0]):  # draws of the experts before ours are made and dropped
        drawn_ri = _drawn_a(a_eri.shape[1:], start, generator)
        if expert >= first:
            a_eri[expert - first].copy_(drawn_ri)


def _fill_pair(module: nn.Module, adapter: str, a_ri: Tensor, start: str, generator: torch.Generator) -> None:
    """A of a linear module or router, and B where the start is not zero there."""
    if start.startswith(("pissa", "olora")):
        assert isinstance(module, LoraLinear)
        _take_start(module, adapter, start, generator)
    elif start == "orthogonal":
        b_or: Tensor = module.lora_B[adapter].weight  # type: ignore[index,union-attr]
        half = a_ri.shape[0] // 2
        turn_rr, _ = torch.linalg.qr(torch.randn(2 * half, 2 * half, generator=generator))
        a_ri.copy_((torch.randn(a_ri.shape[1], half, generator=generator) @ turn_rr[0::2]).t() / 10)
        b_or.copy_(torch.randn(half, b_or.shape[0], generator=generator).t() @ turn_rr[1::2] / 10)
    else:
        a_ri.copy_(_drawn_a(a_ri.shape, start, generator))


def _drawn_a(shape: torch.Size, start: str, generator: torch.Generator) -> Tensor:
    """PEFT's A: uniform in +-1/sqrt(inputs), or normal with deviation 1 / r."""
    drawn_ri = torch.empty(shape, dtype=torch.float32)
    if start == "gaussian":
        return drawn_ri.normal_(0, 1 / shape[0], generator=generator)
    bound = 1 / math.sqrt(shape[1])
    return drawn_ri.uniform_(-bound, bound, generator=generator)


def _take_start(module: LoraLinear, adapter: str, start: str, generator: torch.Generator) -> None:
    """Move the leading part of the weight into the adapter. What is rounded is the adapter; the base is what is left of the rounded one."""
    a_ri, b_or = module.factors(adapter)
    weight_oi, scale, rank = wide(module.base_layer.weight), module.scales[adapter], a_ri.shape[0]
    if start == "olora":
        left_or, right_ri = torch.linalg.qr(weight_oi)
        b_or.copy_(left_or[:, :rank])
        a_ri.copy_(right_ri[:rank])
    else:
        left_or, size_r, right_ri = _leading(weight_oi, rank, start, generator)
        root_r = (size_r / scale).sqrt()
        a_ri.copy_(root_r[:, None] * right_ri)
        b_or.copy_(left_or * root_r)
    module.base_layer.weight.copy_(weight_oi - scale * wide(b_or) @ wide(a_ri))
    module.starts[adapter] = a_ri.detach().to("cpu", copy=True), b_or.detach().to("cpu", copy=True)


def _leading(weight_oi: Tensor, rank: int, start: str, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular vectors and values: left [o, r], values [r], right [r, i]."""
    if start == "pissa":
        left_ok, size_k, right_ki = torch.linalg.svd(weight_oi, full_matrices=False)
        return left_ok[:, :rank], size_k[:rank], right_ki[:rank]
    with _seeded(generator):
        left_or, size_r, right_ir = torch.svd_lowrank(weight_oi, rank, niter=int(start.rpartition("_")[2]))
    return left_or, size_r, right_ir.t()


@contextmanager
def _seeded(generator: torch.Generator) -> Iterator[None]:
    """Torch's own generator starts from a number of ``generator``, and is then as it was: some functions take no other."""
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(0, 2**62, (), generator=generator)))
        yield


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
