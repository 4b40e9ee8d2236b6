"""Expert parallelism: tokens travel to the ranks that hold their experts, and the results travel back.

A token travels once to each rank that holds some of its experts, however many: its hidden state in the type of the computation, and beside
it its routing weights and, for each slot, which of that rank's experts it is for. That rank runs one call of the experts operation, which
applies the weights and gives their gradient, and returns one weighted sum for each row; the token's rank adds these up, in fp32, in the
order of the ranks. All orders are fixed by the expert ids alone; results do not depend on timing.

On the wire, for each (token, other rank) pair: d elements there and d back, and K weights in their type and K int32 ids there; 24 bytes
from each rank to each other one before that (``exchange_plan.COUNTS``). In the backward pass d elements there and d back, and K gradients
of weights back. With rows of several adapters one int32 more. ``traffic`` counts it. Which rows go where: ``exchange_plan``; the journey:
``exchange_flight``. Exercise it: ``pytest tests/ms4_train/parallel/test_exchange.py``.

Shapes: T tokens of this rank, K experts per token, d hidden size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor, nn

from ms4_train.errors import ParallelError
from ms4_train.model import Mistral4ForCausalLM
from ms4_train.model.quantised import QuantisedStack
from ms4_train.parallel.exchange_flight import Dispatched, Flight
from ms4_train.parallel.exchange_plan import agree, outgoing_rows
from ms4_train.parallel.mesh import Mesh
from ms4_train.parallel.parameters import expert_modules
from ms4_train.weights.reading.loading import set_first_expert


class ExpertExchange:
    """The ``exchange`` of an experts module whose stacks are spread over ``group``; ``num_experts`` counts those of all ranks."""

    def __init__(self, group: dist.ProcessGroup, num_experts: int) -> None:
        self.group = group
        self.ranks = dist.get_world_size(group)
        self.num_experts = num_experts
        assert num_experts % self.ranks == 0

    def start(
        self,
        hidden_td: Tensor,
        expert_ids_tk: Tensor,
        weights_tk: Tensor,
        adapter_of_rows: Callable[[int], Tensor] | None = None,
        *,
        by_adapter: bool = False,
    ) -> Dispatched:
        """Send tokens on their way. Every rank of the group must call it, with zero tokens too, and then ``finish`` what it returns.

        Args:
            hidden_td: [T, d].
            expert_ids_tk: int64 [T, K], ids among all experts.
            weights_tk: [T, K], of any floating type, the same on all ranks.
            adapter_of_rows: gives the index of each token's adapter, int64 [T], -1 for none; asked where some rank says ``by_adapter``.
            by_adapter: this rank's tokens are for several adapters.
        """
        rows = outgoing_rows(expert_ids_tk, self.num_experts, self.ranks)
        plan = agree(rows, self.group, by_adapter=by_adapter)
        assert adapter_of_rows is not None or not plan.by_adapter
        adapter_t = adapter_of_rows(hidden_td.shape[0]) if adapter_of_rows is not None and plan.by_adapter else None
        return Dispatched(Flight(plan, self.group, rows.local_ids_sk, adapter_t), hidden_td, weights_tk)


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
        set_first_expert(module, start)  # for adapters that are loaded later
        module.exchange = ExpertExchange(mesh.expert_parallel_group, num_experts)


def _keep_experts(stack: nn.Parameter | QuantisedStack, start: int, stop: int) -> None:
    if isinstance(stack, QuantisedStack):
        stack.keep_experts(start, stop)
    else:
        stack.data = stack.data[start:stop].clone()  # clone: a view would keep the whole stack alive
