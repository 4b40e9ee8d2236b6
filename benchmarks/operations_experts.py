"""The experts operation against transformers' experts module and PEFT's LoRA on it: same stacks, same routing, same outputs.

The peers are ``Mistral4Experts`` of transformers with ``grouped_mm`` and ``eager``, for LoRA wrapped by PEFT's ``target_parameters``. For
quantised stacks, which that module does not take, they are plain torch that dequantises one expert at a time (``ms4_kernels.moe.cpu``),
and ``grouped_mm`` on stacks that are dequantised whole in each pass.
Exercise it: ``python benchmarks/operations.py --tiny --operations experts``.

Shape suffixes: t tokens, k experts per token, e experts, r LoRA rank, d hidden, n expert width, i = 2n; p a LoRA matrix as PEFT packs it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import peft
import torch
from operations_timing import OURS, Comparison, Contestant, grad_mode, gradients
from torch import Tensor, nn
from transformers import Mistral4Config
from transformers.models.mistral4.modeling_mistral4 import Mistral4Experts

from ms4_kernels.moe import ExpertLora, experts
from ms4_kernels.moe.cpu import experts_cpu
from ms4_kernels.quantised import Fp8Weight, Nvfp4Weight, QuantisedWeight
from ms4_train.adapters.peft_format import pack_a, pack_b, unpack_a, unpack_b

RANK, ALPHA = 16, 32
MODES = {"forward": "forward", "frozen": "forward + backward, frozen", "full": "forward + backward, full", "lora": "LoRA r=16"}
RECOMPUTED = "ms4, H recomputed"


@dataclass(frozen=True)
class ExpertsWork:
    """One layer's experts on so many tokens.

    Attributes:
        mode: key of ``MODES``: no gradients; those of hidden states and routing weights; of the stacks too; of LoRA instead.
        stacks: ``dense``, ``fp8`` or ``nvfp4``; quantised ones are frozen.
    """

    tokens: int
    num_experts: int
    hidden: int
    width: int
    dtype: torch.dtype
    device: torch.device
    mode: str
    stacks: str = "dense"
    top_k: int = 4

    @property
    def name(self) -> str:
        """For tables."""
        stacks = "" if self.stacks == "dense" else f", {self.stacks} stacks"
        return f"{MODES[self.mode]}{stacks}, {self.num_experts} experts, {self.tokens} tokens"

    @property
    def flop(self) -> int:
        """Of the products alone: two in the forward pass, as many for the input's gradients, as many for the stacks'; LoRA's are thin."""
        products = 6 * self.tokens * self.top_k * self.hidden * self.width
        passes = {"forward": 1, "frozen": 2, "full": 3, "lora": 2}[self.mode]
        thin = 2 * self.tokens * self.top_k * RANK * (2 * self.hidden + 3 * self.width)  # XA and its tail, on both sides
        return passes * products + (3 * thin if self.mode == "lora" else 0)

    @property
    def saved_bytes(self) -> int:
        """What ours keeps: X and H; routing as weights fp32, two orders int64, and int32 ends of the experts, on a device also those of
        pairs out of range. Nothing without gradients."""
        if self.mode == "forward":
            return 0
        routing, ends = self.top_k * (4 + 8 + 8), self.num_experts + (self.device.type == "cuda")
        return self.tokens * ((self.hidden + self.top_k * 2 * self.width) * self.dtype.itemsize + routing) + 4 * ends


@dataclass(frozen=True)
class _Inputs:
    hidden_td: Tensor
    gate_up_eid: Tensor | QuantisedWeight
    down_edn: Tensor | QuantisedWeight
    ids_tk: Tensor
    weights_tk: Tensor
    lora: ExpertLora | None
    dout_td: Tensor

    @property
    def factors(self) -> list[Tensor]:
        """A and B of gate-up, A and B of down; none without LoRA."""
        lora = self.lora
        found = () if lora is None else (lora.gate_up_a_erd, lora.gate_up_b_eir, lora.down_a_ern, lora.down_b_edr)
        return [factor for factor in found if factor is not None]


def experts_comparison(work: ExpertsWork) -> Comparison:
    """Ours and the peers on one piece of work."""
    inputs = _inputs(work)
    routed = [] if work.mode == "forward" else [inputs.hidden_td, inputs.weights_tk]
    stacks = [stack for stack in (inputs.gate_up_eid, inputs.down_edn) if isinstance(stack, Tensor)]
    wanted = routed + (stacks if work.mode == "full" else inputs.factors)
    arguments = (inputs.hidden_td, inputs.gate_up_eid, inputs.down_edn, inputs.ids_tk, inputs.weights_tk)

    def ours(recompute: bool = False) -> list[Tensor]:
        with grad_mode(wanted):
            return gradients(experts(*arguments, lora=inputs.lora, recompute=recompute), wanted, inputs.dout_td)

    contestants = {OURS: Contestant(ours)}
    if work.mode in ("full", "lora"):
        contestants[RECOMPUTED] = Contestant(lambda: ours(recompute=True))
    kept: list[Tensor] = [*stacks, *inputs.factors]
    if work.stacks != "dense":
        contestants |= _quantised_peers(work, inputs, wanted)
        kept += [part for stack in arguments[1:3] if not isinstance(stack, Tensor) for part in stack.tensors]
    elif work.mode == "lora":
        contestants["transformers (grouped_mm) + PEFT"] = _peft_peer(work, inputs, routed, kept)
    else:
        for implementation in ("grouped_mm", "eager"):
            contestants[f"transformers ({implementation})"] = _peer(work, inputs, routed, implementation)
    return Comparison("experts", work.name, work.tokens, work.dtype, contestants, work.flop, kept, work.saved_bytes)


def _inputs(work: ExpertsWork) -> _Inputs:
    """Random numbers of ordinary size and a routing as a random router gives it; the same for the same work."""
    generator = torch.Generator(work.device).manual_seed(0)
    e, d, n = work.num_experts, work.hidden, work.width

    def normal(*shape: int, wanted: bool = False) -> Tensor:
        x = torch.empty(*shape, dtype=work.dtype, device=work.device).normal_(0.0, shape[-1] ** -0.5, generator=generator)
        return x.requires_grad_(wanted)

    if work.stacks == "dense":
        gate_up_eid, down_edn = (normal(e, *matrix, wanted=work.mode == "full") for matrix in ((2 * n, d), (d, n)))
    else:
        gate_up_eid, down_edn = (_quantised(work.stacks, (e, *matrix), work.device, generator) for matrix in ((2 * n, d), (d, n)))
    lora = None
    if work.mode == "lora":
        matrices = ((RANK, d), (2 * n, RANK), (RANK, n), (d, RANK))
        a_erd, b_eir, a_ern, b_edr = (normal(e, *matrix, wanted=True) for matrix in matrices)
        lora = ExpertLora(a_erd, b_eir, a_ern, b_edr, gate_up_scale=ALPHA / RANK, down_scale=ALPHA / RANK)
    logits_te = torch.randn(work.tokens, e, device=work.device, generator=generator)
    weights_tk, ids_tk = logits_te.softmax(dim=-1).topk(work.top_k)
    weights_tk = weights_tk / weights_tk.sum(dim=-1, keepdim=True)
    x_td, dout_td = (torch.randn(work.tokens, d, device=work.device, generator=generator).to(work.dtype) for _ in range(2))
    wants = work.mode != "forward"
    return _Inputs(x_td.requires_grad_(wants), gate_up_eid, down_edn, ids_tk, weights_tk.requires_grad_(wants), lora, dout_td)


def _quantised(kind: str, shape: tuple[int, int, int], device: torch.device, generator: torch.Generator) -> QuantisedWeight:
    """Random codes, with scales that give values of about ``1 / sqrt(I)``."""

    def some(last: int, top: int) -> Tensor:
        return torch.randint(0, top, (*shape[:2], last), dtype=torch.uint8, device=device, generator=generator)

    experts_, _, inner = shape
    ones_e1 = torch.ones(experts_, 1, device=device)
    if kind == "fp8":
        magnitudes = some(inner, 0x7F)  # 0x7F itself is not a number
        return Fp8Weight(magnitudes | (magnitudes << 7), ones_e1 / 448 / inner**0.5)  # odd codes are negative
    return Nvfp4Weight(some(inner // 2, 256), some(inner // 16, 0x7F), ones_e1 * 448 * 6 * inner**0.5)


def _module(work: ExpertsWork, gate_up_eid: Tensor, down_edn: Tensor, implementation: str) -> Mistral4Experts:
    """Transformers' module on these stacks, not on copies."""
    sizes = {"hidden_size": work.hidden, "moe_intermediate_size": work.width, "n_routed_experts": work.num_experts}
    settings: dict[str, Any] = {**sizes, "num_experts_per_tok": work.top_k, "experts_implementation": implementation}
    config = Mistral4Config(**settings)
    with torch.device("meta"):
        module = Mistral4Experts(config)
    module.gate_up_proj = nn.Parameter(gate_up_eid.detach(), requires_grad=work.mode == "full")
    module.down_proj = nn.Parameter(down_edn.detach(), requires_grad=work.mode == "full")
    return module


def _peer(work: ExpertsWork, inputs: _Inputs, routed: Sequence[Tensor], implementation: str) -> Contestant:
    assert isinstance(inputs.gate_up_eid, Tensor)
    assert isinstance(inputs.down_edn, Tensor)
    module = _module(work, inputs.gate_up_eid, inputs.down_edn, implementation)
    wanted = [*routed, *(parameter for parameter in module.parameters() if parameter.requires_grad)]

    def run() -> list[Tensor]:
        with grad_mode(wanted):
            return gradients(module(inputs.hidden_td, inputs.ids_tk, inputs.weights_tk), wanted, inputs.dout_td)

    return Contestant(run)


def _peft_peer(work: ExpertsWork, inputs: _Inputs, routed: Sequence[Tensor], kept: list[Tensor]) -> Contestant:
    """PEFT wraps one parameter at a time: the outer wrapper is the down projection's, the inner one, in ``base_layer``, gate-up's."""
    assert isinstance(inputs.gate_up_eid, Tensor)
    assert isinstance(inputs.down_edn, Tensor)
    holder: Any = nn.Module()
    holder.experts = _module(work, inputs.gate_up_eid, inputs.down_edn, "grouped_mm")
    targets = ["experts.gate_up_proj", "experts.down_proj"]
    settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_parameters=targets, target_modules=[])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT expects a whole model with a configuration
        peft.inject_adapter_in_model(settings, holder)
    named = {name: parameter for name, parameter in holder.named_parameters() if parameter.requires_grad}
    packed = [_named(named, is_inner, side) for is_inner in (True, False) for side in "AB"]
    with torch.no_grad():
        for mine, theirs, pack in zip(inputs.factors, packed, (pack_a, pack_b) * 2, strict=True):
            theirs.data = pack(mine.detach())  # in the type of the stacks
    kept += packed
    wanted = [*routed, *packed]

    def run() -> list[Tensor]:
        return gradients(holder.experts(inputs.hidden_td, inputs.ids_tk, inputs.weights_tk), wanted, inputs.dout_td)

    def comparable(found: Sequence[Tensor]) -> list[Tensor]:
        unpack = (unpack_a, unpack_b) * 2
        return [*found[:3], *(back(x_p, work.num_experts) for back, x_p in zip(unpack, found[3:], strict=True))]

    return Contestant(run, comparable)


def _named(named: dict[str, nn.Parameter], is_inner: bool, side: str) -> nn.Parameter:
    (found,) = (parameter for name, parameter in named.items() if ("base_layer" in name) == is_inner and f"lora_{side}" in name)
    return found


def _quantised_peers(work: ExpertsWork, inputs: _Inputs, wanted: Sequence[Tensor]) -> dict[str, Contestant]:
    gate_up, down = inputs.gate_up_eid, inputs.down_edn
    assert not isinstance(gate_up, Tensor)
    assert not isinstance(down, Tensor)

    def one_at_a_time() -> list[Tensor]:
        arguments = (inputs.hidden_td, gate_up, down, inputs.ids_tk, inputs.weights_tk)
        with grad_mode(wanted):
            return gradients(experts_cpu(*arguments), wanted, inputs.dout_td)

    def whole() -> list[Tensor]:
        module = _module(work, gate_up.dequantise(work.dtype), down.dequantise(work.dtype), "grouped_mm")
        with grad_mode(wanted):
            return gradients(module(inputs.hidden_td, inputs.ids_tk, inputs.weights_tk), wanted, inputs.dout_td)

    return {
        "torch, dequantised by expert": Contestant(one_at_a_time),
        "dequantised whole, transformers (grouped_mm)": Contestant(whole),
    }
