"""Calls of the experts operation that between them cover what can go wrong, and the rule by which a result is judged.

The truth is autograd through the reference in fp64; the bar is autograd through the reference in the type of the call. A path passes when
its error, of the output and of every gradient, is at most twice that of the bar.

Not the full product of routings, sizes, types, stacks and adapters: each case takes one routing and is inconvenient in every other
respect. Every routing meets bf16; every kind of stack meets bf16 and fp32; LoRA on either side, on both and of each rank meets dense and
quantised stacks; every tile is chosen by some case (they change at 16, 48 and 256 rows per expert). Widths are no multiples of a tile
unless a case says "even". ``test_cpu_cases.py`` asserts as much.

Shape suffixes: t tokens, k experts per token, e experts, p LoRA rank, d hidden, n expert intermediate, i = 2n, l adapters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import torch
from support.quantised import fp8_weight, nvfp4_weight
from torch import Tensor

from ms4_kernels.moe.lora import ExpertLora
from ms4_kernels.moe.reference import experts_reference
from ms4_kernels.quantised import QuantisedWeight

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
FACTORS = ("gate_up_a_erd", "gate_up_b_eir", "down_a_ern", "down_b_edr")
SCALES = (0.75, 1.3)  # no powers of two, and apart: a scale that is left out or taken from the other side shows


def _segments(*counts: int) -> Tensor:
    """One expert per token, so many tokens each, the tokens in no order."""
    ids_t = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return ids_t[torch.randperm(ids_t.numel())].unsqueeze(1)


def _emptied(ids_tk: Tensor) -> Tensor:
    """The same with half of the slots empty, and with tokens that have none left."""
    ids_tk = ids_tk.where(torch.rand(ids_tk.shape) < 0.5, -1)
    ids_tk[[0, 4, -1]] = -1
    return ids_tk


def _top(tokens: int, experts: Tensor, k: int) -> Tensor:
    """Random distinct experts out of those given."""
    return experts[torch.rand(tokens, experts.numel()).topk(k).indices]


ROUTINGS: dict[str, tuple[int, Callable[[], Tensor]]] = {
    "ragged": (5, lambda: _top(13, torch.arange(5), 2)),
    "empty edges": (7, lambda: _top(11, torch.tensor([1, 2, 4, 5]), 3)),  # none to the first, the middle and the last
    "one row": (4, lambda: torch.tensor([[2]])),
    "no tokens": (4, lambda: torch.empty(0, 2, dtype=torch.int64)),
    "all to one": (4, lambda: _segments(0, 0, 41, 0)),
    "odd segments": (5, lambda: _segments(17, 49, 1, 0, 31)),
    "one expert twice": (4, lambda: torch.tensor([[2, 2, 0], [0, 2, 2], [3, 3, 3], [1, 0, 3]]).repeat(3, 1)),
    "release": (128, lambda: _top(12, torch.arange(128), 4)),
    "32 rows": (2, lambda: _segments(31, 44)),
    "64 rows": (2, lambda: _segments(65, 77)),
    "128 rows": (2, lambda: _top(150, torch.arange(2), 2)),
    "256 rows": (2, lambda: _segments(129, 400)),
    "empty slots": (5, lambda: _emptied(_top(23, torch.arange(5), 3))),
    "no slot filled": (4, lambda: torch.full((7, 2), -1)),
}
"""Name -> number of experts, ids [T, K]; -1: no expert in this slot."""

Stacks = Literal["dense", "fp8", "fp8 two groups", "nvfp4"]
Lora = Literal["", "gate_up", "down", "both"]


@dataclass(frozen=True)
class Case:
    """One call: which routing, how wide, of which types, with what to train."""

    routing: str
    dtype: torch.dtype
    stacks: Stacks
    lora: Lora = ""
    rank: int = 8
    trained: bool = False
    adapters: int = 0
    width: int = 80
    expert_width: int = 48
    weights_dtype: torch.dtype = FP32
    slow: bool = False

    def __str__(self) -> str:
        """The name of the test."""
        parts = [self.routing, str(self.dtype).removeprefix("torch."), self.stacks, f"{self.width}x{self.expert_width}"]
        parts += [f"lora {self.lora} r{self.rank}"] if self.lora else []
        parts += ["trained"] if self.trained else []
        parts += [f"{self.adapters} adapters"] if self.adapters else []
        return ", ".join(parts)


CASES = (
    Case("ragged", BF16, "dense", trained=True, width=72, expert_width=72),
    Case("ragged", FP32, "dense", "both", 8, trained=True, width=72, expert_width=40),
    Case("ragged", BF16, "fp8", "down", 128),
    Case("ragged", BF16, "nvfp4", "gate_up", 16, width=128, expert_width=64),  # even
    Case("ragged", BF16, "dense", "both", 16, trained=True, adapters=2),
    Case("ragged", FP16, "dense", "both", 8, trained=True, width=40, expert_width=24),
    Case("empty edges", BF16, "dense", "both", 8, trained=True, width=75, expert_width=37),
    Case("empty edges", FP32, "nvfp4"),
    Case("one row", BF16, "dense", "both", 16, trained=True),
    Case("one row", FP32, "fp8", "gate_up", 8),
    Case("no tokens", BF16, "dense", "both", 8, trained=True),
    Case("no tokens", BF16, "nvfp4", "both", 8, adapters=2),
    Case("all to one", BF16, "fp8 two groups", "both", 16, width=150),
    Case("all to one", FP32, "fp8 two groups", "both", 8, adapters=3, width=40, expert_width=20),
    Case("all to one", FP32, "dense", "down", 16, trained=True),
    Case("odd segments", BF16, "fp8 two groups", "gate_up", 128),
    Case("odd segments", BF16, "dense", trained=True, width=64, expert_width=64),  # even
    Case("one expert twice", BF16, "dense", "both", 8, trained=True, weights_dtype=BF16),
    Case("one expert twice", BF16, "nvfp4", "both", 8, adapters=1),
    Case("release", BF16, "fp8"),
    Case("release", BF16, "dense", "both", 16, trained=True, slow=True),
    Case("release", FP32, "nvfp4", "both", 8, width=144, expert_width=80, slow=True),
    Case("32 rows", BF16, "nvfp4", "both", 8),
    Case("32 rows", FP32, "dense", trained=True, slow=True),
    Case("64 rows", BF16, "dense", "both", 8, trained=True, width=72, expert_width=72),
    Case("64 rows", FP32, "fp8", "down", 8, slow=True),
    Case("128 rows", BF16, "fp8", "both", 16),
    Case("128 rows", FP32, "dense", "gate_up", 16, trained=True, slow=True),
    Case("256 rows", BF16, "dense", "both", 16, trained=True, width=136, expert_width=72),
    Case("256 rows", BF16, "nvfp4", "both", 128, adapters=2, width=144, expert_width=80, slow=True),
    Case("256 rows", BF16, "dense", "both", 16, trained=True, width=256, expert_width=128, slow=True),  # even
    Case("256 rows", BF16, "fp8 two groups", "both", 128, width=144, expert_width=80, slow=True),
    Case("256 rows", FP32, "dense", "both", 128, trained=True, slow=True),
    Case("empty slots", BF16, "dense", "both", 16, trained=True, adapters=2, width=40, expert_width=24),
    Case("empty slots", FP32, "dense", trained=True, width=72, expert_width=40),
    Case("empty slots", BF16, "fp8", "both", 8),
    Case("empty slots", FP32, "nvfp4", "gate_up", 8, slow=True),
    Case("no slot filled", BF16, "dense", "both", 8, trained=True),
    Case("no slot filled", BF16, "nvfp4", "down", 8, adapters=2),
)


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call, and the gradient of its output."""

    hidden_td: Tensor
    gate_up_eid: Tensor | QuantisedWeight
    down_edn: Tensor | QuantisedWeight
    expert_ids_tk: Tensor
    weights_tk: Tensor
    lora: ExpertLora | None
    adapter_t: Tensor | None
    dout_td: Tensor

    def wanted(self) -> dict[str, Tensor]:
        """What wants a gradient, by name."""
        named = {name: getattr(self, name) for name in ("hidden_td", "weights_tk", "gate_up_eid", "down_edn")}
        named |= {name: getattr(self.lora, name, None) for name in FACTORS}
        return {name: x for name, x in named.items() if isinstance(x, Tensor) and x.requires_grad}

    def dequantised(self) -> Inputs:
        """The same call with stacks of plain tensors, of the type of the call."""
        stacks = (self.gate_up_eid, self.down_edn)
        gate_up, down = (x.dequantise(self.hidden_td.dtype) if isinstance(x, QuantisedWeight) else x for x in stacks)
        return dataclasses.replace(self, gate_up_eid=gate_up, down_edn=down)

    def in_fp64(self) -> Inputs:
        """The same numbers, stacks dequantised in the type of the call first: their rounding there is the definition, not an error."""
        plain = self.dequantised()

        def wide(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.detach().double().requires_grad_(x.requires_grad)

        lora = self.lora and dataclasses.replace(self.lora, **{name: wide(getattr(self.lora, name)) for name in FACTORS})
        names = ("hidden_td", "gate_up_eid", "down_edn", "weights_tk", "dout_td")
        return dataclasses.replace(plain, lora=lora, **{name: wide(getattr(plain, name)) for name in names})


@cache
def make(case: Case) -> Inputs:
    """Random numbers of ordinary size, the same for every caller, with the low-rank products about as large as the base ones."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        num_experts, ids = ROUTINGS[case.routing]
        ids_tk, d, n, lead = ids(), case.width, case.expert_width, (case.adapters,) if case.adapters else ()

        def normal(*shape: int, wanted: bool = True) -> Tensor:
            return (torch.randn(*shape) / shape[-1] ** 0.5).to(case.dtype).requires_grad_(wanted)

        stacks = _stacks(case, num_experts, normal)
        pairs: dict[str, Tensor] = {}
        if case.lora in ("gate_up", "both"):
            pairs["gate_up_a_erd"], pairs["gate_up_b_eir"] = (normal(*lead, num_experts, *s) for s in ((case.rank, d), (2 * n, case.rank)))
        if case.lora in ("down", "both"):
            pairs["down_a_ern"], pairs["down_b_edr"] = (normal(*lead, num_experts, *s) for s in ((case.rank, n), (d, case.rank)))
        lora = ExpertLora(**pairs, gate_up_scale=SCALES[0], down_scale=SCALES[1]) if pairs else None
        adapter_t = torch.randint(-1, case.adapters, ids_tk.shape[:1]) if case.adapters else None
        hidden_td, dout_td = (torch.randn(ids_tk.shape[0], d).to(case.dtype) for _ in range(2))
        weights_tk = (torch.rand(ids_tk.shape) + 0.1).to(case.weights_dtype).requires_grad_()
        return Inputs(hidden_td.requires_grad_(), *stacks, ids_tk, weights_tk, lora, adapter_t, dout_td)


def _stacks(case: Case, num_experts: int, normal: Callable[..., Tensor]) -> tuple[Tensor | QuantisedWeight, Tensor | QuantisedWeight]:
    d, n = case.width, case.expert_width
    if case.stacks == "dense":
        return normal(num_experts, 2 * n, d, wanted=case.trained), normal(num_experts, d, n, wanted=case.trained)
    if case.stacks == "nvfp4":
        return nvfp4_weight(num_experts, 2 * n, d, groups=2), nvfp4_weight(num_experts, d, n)
    return fp8_weight(num_experts, 2 * n, d, groups=2 if case.stacks == "fp8 two groups" else 1), fp8_weight(num_experts, d, n)


def run(function: Callable[..., Tensor], inputs: Inputs, **options: object) -> dict[str, Tensor]:
    """Return the output, as ``out``, and every gradient, by the name of what it is of."""
    arguments = (inputs.hidden_td, inputs.gate_up_eid, inputs.down_edn, inputs.expert_ids_tk, inputs.weights_tk, inputs.lora)
    if inputs.adapter_t is not None:
        options["adapter_t"] = inputs.adapter_t
    out_td = function(*arguments, **options)
    wanted = inputs.wanted()
    grads = torch.autograd.grad(out_td, list(wanted.values()), inputs.dout_td.to(out_td.dtype), allow_unused=True)
    found = {name: torch.zeros_like(x) if grad is None else grad for (name, x), grad in zip(wanted.items(), grads, strict=True)}
    return {"out": out_td.detach()} | found


def reference(
    hidden_td: Tensor,
    gate_up_eid: Tensor | QuantisedWeight,
    down_edn: Tensor | QuantisedWeight,
    ids_tk: Tensor,
    weights_tk: Tensor,
    lora: ExpertLora | None,
    adapter_t: Tensor | None = None,
    one: Callable[..., Tensor] = experts_reference,
) -> Tensor:
    """The reference, or another path ``one``, called once for each adapter on the tokens that it serves."""
    if adapter_t is None:
        return one(hidden_td, gate_up_eid, down_edn, ids_tk, weights_tk, lora)
    out_td = torch.zeros_like(hidden_td)
    for adapter in range(-1, int(adapter_t.max()) + 1 if adapter_t.numel() else 0):
        (token_s,) = (adapter_t == adapter).nonzero(as_tuple=True)
        own = {name: getattr(lora, name)[adapter] for name in FACTORS if getattr(lora, name, None) is not None}
        pair = dataclasses.replace(lora, **own) if lora and adapter >= 0 else None
        part_sd = one(hidden_td[token_s], gate_up_eid, down_edn, ids_tk[token_s], weights_tk[token_s], pair)
        out_td = out_td.index_add(0, token_s, part_sd)
    return out_td


@cache
def truth(case: Case) -> dict[str, Tensor]:
    """What the call gives in fp64."""
    return run(reference, make(case).in_fp64())


@cache
def explicit_truth(case: Case) -> dict[str, Tensor]:
    """What the call gives in fp64 with matrices ``W + s B A`` in the place of LoRA: an oracle that shares no low-rank product with it."""

    def merged(
        hidden_td: Tensor, gate_up_eid: Tensor, down_edn: Tensor, ids_tk: Tensor, weights_tk: Tensor, lora: ExpertLora | None
    ) -> Tensor:
        if lora and lora.gate_up_a_erd is not None and lora.gate_up_b_eir is not None:
            gate_up_eid = gate_up_eid + lora.gate_up_scale * lora.gate_up_b_eir @ lora.gate_up_a_erd
        if lora and lora.down_a_ern is not None and lora.down_b_edr is not None:
            down_edn = down_edn + lora.down_scale * lora.down_b_edr @ lora.down_a_ern
        return experts_reference(hidden_td, gate_up_eid, down_edn, ids_tk, weights_tk)

    return run(partial(reference, one=merged), make(case).in_fp64())


@cache
def bar(case: Case) -> dict[str, Tensor]:
    """What plain torch gives in the type of the call."""
    return run(reference, make(case))


def violations(actual: dict[str, Tensor], case: Case, factor: float = 2.0) -> list[str]:
    """Where a result breaks the rule, one line for each tensor and measure; [] where it holds.

    Three measures: the norm of the error, the norm of its worst row, and its largest element; the last two see faults of a row or of an
    element that the norm would dilute. The largest of many is a matter of luck in either computation, so those may be twice the factor.
    What is exactly zero in fp64, as the gradient of an expert without rows, must be exactly zero.

    The floor: a result can be stored no better than to the unit roundoff of its type, u = eps / 2, of its size, and plain torch is at times
    luckier than that. Of fewer than 32 numbers, such as the router's gradient of a single row, the error is no estimate of anything: the
    floor is 4 u there, about twice what plain torch loses on larger ones. In fp32 it is 7 u: there the order of a sum decides, and torch's
    depends on the processor: its products lose 3 to 7 u on one, 2 on another, and a single row, of many short sums, 0.3 to 1.3. The
    router's gradient is fp32 but sums products of numbers of the call's type, hence its u for all.
    """
    exact, plain = truth(case), bar(case)
    assert actual.keys() == exact.keys()
    found = []
    for name, wide in exact.items():
        got = actual[name]
        if got.shape != wide.shape or got.dtype != plain[name].dtype:
            found.append(f"{name}: {got.dtype} {list(got.shape)} instead of {plain[name].dtype} {list(wide.shape)}")
        elif wide.numel():
            floor = torch.finfo(case.dtype).eps / 2 * (7 if case.dtype == FP32 else 4 if wide.numel() < 32 else 1)
            found += _broken(name, got, plain[name], wide, factor, floor)
    return found


_MEASURES = (
    ("norm", torch.linalg.vector_norm, 1),
    ("worst row", lambda x: torch.linalg.vector_norm(x, dim=-1).max(), 2),
    ("largest", lambda x: x.abs().max(), 2),
)


def _broken(name: str, got: Tensor, plain: Tensor, wide: Tensor, factor: float, floor: float) -> Iterator[str]:
    for measure, size, luck in _MEASURES:
        error, bound = (float(size(x.double() - wide) / size(wide).clamp(min=1e-300)) for x in (got, plain))
        if not error <= max(factor * luck * bound, floor):  # written so that nan breaks it
            yield f"{name}: {measure} of the error {error:.2e}, plain torch {bound:.2e}"
    if bool((got[wide == 0] != 0).any()):
        yield f"{name}: not zero where it must be"


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill new memory (``torch.empty``) with nan, or the largest integer: what a kernel fails to write then shows."""
    settings = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = True  # some libraries switch it off for the whole process
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]
