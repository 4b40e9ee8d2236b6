"""The bare products of a training step: the time below which no step made of torch's matrix products and attention can be.

Every product that the step needs, forward and backward, by ``torch.mm`` into memory that exists already, with the routing counts of our
last step, and ``scaled_dot_product_attention`` with its backward. Weights are the model's own, so they come from memory as in the step;
rows are random and shared between layers. No norm, softmax, activation, gather, loss or optimizer.
Exercise it: ``python benchmarks/train_step.py --quick``.

Shape suffixes: r rows, i / o features in / out, p LoRA rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from train_step_contestants import ADAPTER, Work


class BareProducts:
    """Collects products while the model is walked; call it to run them.

    Attributes:
        flops: 2 * m * n * k of every matrix product; attention not counted.
    """

    def __init__(self, work: Work, model: nn.Module) -> None:
        self.work = work
        self.flops = 0
        self._products: list[tuple[Tensor, Tensor, Tensor]] = []
        self._buffers: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self._is_lora = work.mode == "lora"
        weights = {name.replace(".base_layer.", "."): parameter.detach() for name, parameter in model.named_parameters()}
        counts: Sequence[Tensor] = model.expert_counts()  # type: ignore[operator]
        for layer, counts_e in enumerate(counts):
            self._layer(weights, f"model.layers.{layer}", counts_e.tolist(), is_first=layer == 0)
        self._linear(weights["lm_head.weight"], needs_weight=not self._is_lora)
        self._num_layers = len(counts)
        self._attention = self._attention_inputs()

    def __call__(self) -> None:
        """Run all products, then attention of all layers."""
        for left, right, out in self._products:
            torch.mm(left, right, out=out)
        for _ in range(self._num_layers):
            for query, key, value in self._attention:
                out = F.scaled_dot_product_attention(query, key, value, is_causal=True)
                torch.autograd.grad(out, (query, key, value), out.detach())

    def _layer(self, weights: dict[str, Tensor], layer: str, counts: list[int], *, is_first: bool) -> None:
        full = not self._is_lora
        for name in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"):
            # Nothing before the first layer is trained with an adapter, so nobody asks for its input's gradient.
            needs_input = full or not (is_first and name in ("q_a_proj", "kv_a_proj_with_mqa"))
            self._linear(weights[f"{layer}.self_attn.{name}.weight"], needs_weight=full, needs_input=needs_input, adapted=self._is_lora)
        self._linear(weights[f"{layer}.mlp.gate.weight"], needs_weight=full)
        for name in ("gate_proj", "up_proj", "down_proj"):
            self._linear(weights[f"{layer}.mlp.shared_experts.{name}.weight"], needs_weight=full)
        for name in ("gate_up_proj", "down_proj"):
            self._stack(weights[f"{layer}.mlp.experts.{name}"], counts)

    def _linear(self, weight_oi: Tensor, *, needs_weight: bool, needs_input: bool = True, adapted: bool = False) -> None:
        (outputs, inputs), rows = weight_oi.shape, self.work.num_tokens
        x_ri, y_ro, dx_ri = self._buffer("x", rows, inputs), self._buffer("y", rows, outputs), self._buffer("dx", rows, inputs)
        dweight_oi = self._buffer("dw", outputs, inputs) if needs_weight else None
        self._products_of(x_ri, weight_oi, y_ro, dx_ri if needs_input else None, dweight_oi)
        if adapted:
            rank = ADAPTER.r
            a_pi, b_op, low_rp = self._buffer("a", rank, inputs), self._buffer("b", outputs, rank), self._buffer("low", rows, rank)
            self._products_of(x_ri, a_pi, low_rp, dx_ri if needs_input else None, self._buffer("da", rank, inputs))
            self._products_of(low_rp, b_op, y_ro, self._buffer("dlow", rows, rank), self._buffer("db", outputs, rank))

    def _stack(self, weight_eoi: Tensor, counts: list[int]) -> None:
        (experts, outputs, inputs), rows, rank = weight_eoi.shape, sum(counts), ADAPTER.r
        x_ri, y_ro, dx_ri = self._buffer("x", rows, inputs), self._buffer("y", rows, outputs), self._buffer("dx", rows, inputs)
        low_rp, dlow_rp = self._buffer("low", rows, rank), self._buffer("dlow", rows, rank)
        for expert, (start, count) in enumerate(zip(itertools.accumulate([0, *counts]), counts, strict=False)):
            if not count:
                continue
            part = slice(start, start + count)
            dweight_oi = None if self._is_lora else self._buffer("dw", experts, outputs, inputs)[expert]
            self._products_of(x_ri[part], weight_eoi[expert], y_ro[part], dx_ri[part], dweight_oi)
            if self._is_lora:
                a_pi, da_pi = self._buffer("a", experts, rank, inputs)[expert], self._buffer("da", experts, rank, inputs)[expert]
                b_op, db_op = self._buffer("b", experts, outputs, rank)[expert], self._buffer("db", experts, outputs, rank)[expert]
                self._products_of(x_ri[part], a_pi, low_rp[part], dx_ri[part], da_pi)
                self._products_of(low_rp[part], b_op, y_ro[part], dlow_rp[part], db_op)

    def _products_of(self, x_ri: Tensor, weight_oi: Tensor, y_ro: Tensor, dx_ri: Tensor | None, dweight_oi: Tensor | None) -> None:
        self._add(x_ri, weight_oi.t(), y_ro)
        if dx_ri is not None:
            self._add(y_ro, weight_oi, dx_ri)
        if dweight_oi is not None:
            self._add(y_ro.t(), x_ri, dweight_oi)

    def _add(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        self.flops += 2 * left.shape[0] * left.shape[1] * right.shape[1]
        self._products.append((left, right, out))

    def _buffer(self, role: str, *shape: int) -> Tensor:
        key = (role, shape)
        if key not in self._buffers:
            # Small values: products of products of results must not run into infinities or denormals, which are slow.
            self._buffers[key] = torch.randn(shape, dtype=self.work.dtype).mul_(0.1)
        return self._buffers[key]

    def _attention_inputs(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        config, lengths = self.work.config(), self.work.lengths
        shapes = [(len(lengths), lengths[0])] if len(set(lengths)) == 1 else [(1, length) for length in lengths]

        def random(batch: int, length: int, width: int) -> Tensor:
            return torch.randn(batch, config.num_attention_heads, length, width, dtype=self.work.dtype, requires_grad=True)

        widths = (config.qk_head_dim, config.qk_head_dim, config.v_head_dim)
        return [tuple(random(batch, length, width) for width in widths) for batch, length in shapes]  # type: ignore[misc]


def bare_products(work: Work, model: nn.Module) -> tuple[Callable[[], object], float]:
    """The products of our model's last step, to be run, and their GFLOP without attention."""
    products = BareProducts(work, model)
    return products, products.flops / 1e9
