"""Low-rank adapters of stacked experts: one pair of small stacks for each adapted weight stack.

The products run inside the experts operation (``ms4_kernels.moe``); this module holds the parameters, in the shapes that operation takes,
and shards them as the experts themselves are sharded, along dim 0. Exercise it: ``pytest tests/ms4_train/adapters/test_expert_lora.py``.

Shape suffixes: e experts, r adapter rank, d hidden size, n expert width, i = 2n, o output features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ms4_kernels.moe import ExpertLora
from ms4_train.model.quantised import QuantisedStack


class StackedLora(nn.Module):
    """Adapter of the experts of one layer: ``W_e + scale * B_e A_e`` for each adapted stack.

    Parameters ``gate_up_a_erd``, ``gate_up_b_eir``, ``down_a_ern`` and ``down_b_edr``; those of a stack that is not adapted are None.
    A starts uniform in +-1/sqrt(inputs) and B at zero, as PEFT starts its own, so an untrained adapter changes nothing.

    Args:
        num_experts: experts held by this process.
        hidden_size: d.
        expert_width: n.
        rank: r.
        scale: factor of the product, the same for both stacks.
        gate_up: adapt ``gate_up_proj`` [e, 2n, d].
        down: adapt ``down_proj`` [e, d, n].
        like: a stack whose type, the compute type if it is quantised, and device the adapter takes.
    """

    gate_up_a_erd: nn.Parameter | None
    gate_up_b_eir: nn.Parameter | None
    down_a_ern: nn.Parameter | None
    down_b_edr: nn.Parameter | None

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        expert_width: int,
        *,
        rank: int,
        scale: float,
        gate_up: bool,
        down: bool,
        like: Tensor | QuantisedStack,
    ) -> None:
        super().__init__()
        self.rank = rank
        self.scale = scale

        def pair(adapted: bool, inputs: int, outputs: int) -> tuple[nn.Parameter | None, nn.Parameter | None]:
            if not adapted:
                return None, None
            a_eri = torch.empty(num_experts, rank, inputs, dtype=like.dtype, device=like.device)
            b_eor = torch.zeros(num_experts, outputs, rank, dtype=like.dtype, device=like.device)
            nn.init.uniform_(a_eri, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))
            return nn.Parameter(a_eri), nn.Parameter(b_eor)

        gate_up_a_erd, gate_up_b_eir = pair(gate_up, hidden_size, 2 * expert_width)
        down_a_ern, down_b_edr = pair(down, expert_width, hidden_size)
        self.register_parameter("gate_up_a_erd", gate_up_a_erd)
        self.register_parameter("gate_up_b_eir", gate_up_b_eir)
        self.register_parameter("down_a_ern", down_a_ern)
        self.register_parameter("down_b_edr", down_b_edr)

    def kernel_lora(self) -> ExpertLora:
        """The parameters as the experts operation takes them."""
        return ExpertLora(
            gate_up_a_erd=self.gate_up_a_erd,
            gate_up_b_eir=self.gate_up_b_eir,
            down_a_ern=self.down_a_ern,
            down_b_edr=self.down_b_edr,
            gate_up_scale=self.scale,
            down_scale=self.scale,
        )

    def pairs(self) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        """The (A, B) pair of each adapted stack, by the name of the stack: ``gate_up_proj``, ``down_proj``."""
        found: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        if self.gate_up_a_erd is not None and self.gate_up_b_eir is not None:
            found["gate_up_proj"] = (self.gate_up_a_erd, self.gate_up_b_eir)
        if self.down_a_ern is not None and self.down_b_edr is not None:
            found["down_proj"] = (self.down_a_ern, self.down_b_edr)
        return found

    def extra_repr(self) -> str:
        """Rank, scale and the adapted stacks."""
        return f"rank={self.rank}, scale={self.scale:g}, stacks={'+'.join(self.pairs())}"


@torch.no_grad()
def add_product(stack_eoi: Tensor, a_eri: Tensor, b_eor: Tensor, scale: float) -> None:
    """Add ``scale * B_e A_e`` to every expert in place: the product and the sum in fp32, rounded once to the stack's type."""
    for index in range(stack_eoi.shape[0]):  # one expert at a time: a whole stack in fp32 is twice the size of the stack
        delta_oi = b_eor[index].float() @ a_eri[index].float()
        stack_eoi[index] = (stack_eoi[index].float() + scale * delta_oi).to(stack_eoi.dtype)
