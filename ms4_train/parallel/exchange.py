"""Expert parallelism: tokens travel to the ranks that hold their experts, and the results travel back.

Every rank sorts its (token, expert) pairs by expert, so the pairs of one destination are neighbours and only counts per expert need to be
sent beside the rows. Routing weights travel with the rows: the experts operation applies them and gives their gradient, so nothing of
size [pairs, d] is kept for backward here. All orders are fixed by the expert ids alone; results do not depend on timing.
Every rank of the group must take part in every call, with zero tokens too, in forward and in backward.
Exercise it: ``pytest tests/ms4_train/parallel/test_exchange.py``.

Shapes: T tokens of this rank, K experts per token, S = T * K pairs sent, R pairs received, d hidden size, E experts, L local experts,
P ranks of the expert-parallel group.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ms4_train.errors import ParallelError
from ms4_train.model import Mistral4ForCausalLM
from ms4_train.model.moe import LocalExperts
from ms4_train.model.quantised import QuantisedStack
from ms4_train.parallel.mesh import Mesh
from ms4_train.parallel.parameters import expert_modules


class ExpertExchange:
    """The ``exchange`` of an experts module whose stacks are spread over ``group``; ``num_experts`` counts those of all ranks."""

    def __init__(self, group: dist.ProcessGroup, num_experts: int) -> None:
        self.group = group
        self.ranks = dist.get_world_size(group)
        self.num_experts = num_experts
        assert num_experts % self.ranks == 0

    def __call__(self, hidden_td: Tensor, expert_ids_tk: Tensor, weights_tk: Tensor, compute: LocalExperts) -> Tensor:
        """Run every token through its experts, wherever they are.

        ``expert_ids_tk`` are ids among all experts. ``compute(hidden_rd, local_ids_r1, weights_r1)`` gives weighted rows of the local
        experts. Returns the sum over a token's experts, ``[T, d]`` in the dtype of ``hidden_td``.
        """
        top_k = expert_ids_tk.shape[1]
        flat_ids_s = expert_ids_tk.reshape(-1)
        order_s = torch.argsort(flat_ids_s, stable=True)
        sent_counts_pl = torch.bincount(flat_ids_s, minlength=self.num_experts).view(self.ranks, -1)
        received_counts_pl = torch.empty_like(sent_counts_pl)
        dist.all_to_all_single(received_counts_pl, sent_counts_pl, group=self.group)
        sent, received = sent_counts_pl.sum(1).tolist(), received_counts_pl.sum(1).tolist()

        hidden_sd = _SpreadTokens.apply(hidden_td, order_s, top_k)
        hidden_rd = _AllToAll.apply(hidden_sd, sent, received, self.group)
        weights_r1 = _AllToAll.apply(weights_tk.reshape(-1, 1)[order_s], sent, received, self.group)
        local_ids_l = torch.arange(received_counts_pl.shape[1], device=hidden_td.device)
        local_ids_r1 = local_ids_l.repeat(self.ranks).repeat_interleave(received_counts_pl.reshape(-1)).unsqueeze(1)
        out_rd = compute(hidden_rd, local_ids_r1, weights_r1)
        out_sd = _AllToAll.apply(out_rd, received, sent, self.group)
        return _SumPairs.apply(out_sd, order_s, top_k)


def shard_experts(model: Mistral4ForCausalLM, mesh: Mesh) -> None:
    """Leave each rank its own experts and connect them: slices the stacks of every experts module, adapters of experts too.

    Call it after adapters were attached and before ``make_engine``. Tensors that were loaded with this rank's experts only are taken as
    they are. Does nothing without expert parallelism.

    Raises:
        ParallelError: the experts cannot be divided over the ranks, or a tensor has neither all nor the local ones.
    """
    if mesh.expert_parallel_size == 1:
        return
    assert mesh.expert_parallel_group is not None
    num_experts = model.config.n_routed_experts
    start, stop = mesh.expert_range(num_experts)
    for prefix, module in expert_modules(model):
        stacks = [(name, stack) for name, stack in module.named_children() if isinstance(stack, QuantisedStack)]
        for name, stack in [*module.named_parameters(), *stacks]:
            if stack.shape[0] == num_experts:
                _keep_experts(stack, start, stop)
            elif stack.shape[0] != stop - start:
                raise ParallelError(
                    f"the tensor has {stack.shape[0]} experts; expected {num_experts}, or the {stop - start} of this rank.",
                    key=f"{prefix}.{name}",
                    fix="load the model with the experts of this rank, or with all of them.",
                )
        module.exchange = ExpertExchange(mesh.expert_parallel_group, num_experts)


def _keep_experts(stack: nn.Parameter | QuantisedStack, start: int, stop: int) -> None:
    if isinstance(stack, QuantisedStack):
        stack.keep_experts(start, stop)
    else:
        stack.data = stack.data[start:stop].clone()  # clone: a view would keep the whole stack alive


class _SpreadTokens(torch.autograd.Function):
    """[T, d] -> [S, d]: row ``order_s[i] // top_k`` at place i. Its backward is the forward of ``_SumPairs``."""

    @staticmethod
    def forward(ctx: Any, hidden_td: Tensor, order_s: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(order_s)
        ctx.top_k = top_k
        return hidden_td[order_s // top_k]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (order_s,) = ctx.saved_tensors
        return _SumPairs.apply(grad_outputs[0], order_s, ctx.top_k), None, None


class _SumPairs(torch.autograd.Function):
    """[S, d] -> [T, d]: the sum of a token's rows, in the order of its experts. Its backward is the forward of ``_SpreadTokens``."""

    @staticmethod
    def forward(ctx: Any, rows_sd: Tensor, order_s: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(order_s)
        ctx.top_k = top_k
        return _sum_pairs(rows_sd, order_s, top_k)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (order_s,) = ctx.saved_tensors
        return _SpreadTokens.apply(grad_outputs[0], order_s, ctx.top_k), None, None


class _AllToAll(torch.autograd.Function):
    """Rows to the ranks of a group: the first ``sent[0]`` go to rank 0, and so on; ``received[p]`` come from rank p."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _all_to_all(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        return _AllToAll.apply(grad_outputs[0], ctx.received, ctx.sent, ctx.group), None, None, None


def _sum_pairs(rows_sd: Tensor, order_s: Tensor, top_k: int) -> Tensor:
    # A gather followed by a sum over K: deterministic on every device, unlike index_add. bf16 rows are added in fp32.
    place_s = torch.empty_like(order_s)
    place_s[order_s] = torch.arange(order_s.numel(), device=order_s.device)
    pairs_tkd = rows_sd[place_s].view(-1, top_k, rows_sd.shape[1])
    accumulate = torch.float64 if rows_sd.dtype == torch.float64 else torch.float32
    return pairs_tkd.sum(1, dtype=accumulate).to(rows_sd.dtype)


def _all_to_all(rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    out = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(out, rows.contiguous(), received, sent, group=group)
    return out
