"""Tokens on their way to experts of other ranks and back, as autograd functions: what is started in one is waited for in another.

Forward: ``_Depart`` starts the rows and returns stand-ins; what the caller computes then (the shared expert) runs while they travel;
``_Arrive`` waits. Outputs return in ``_Return``, which waits at once. Backward, in reverse: gradients of outputs travel in ``_Return``;
those of hidden states and routing weights are started in ``_Arrive`` and waited for in ``_Depart``. Autograd runs later nodes first, so
the backward of whatever was computed between departure and arrival runs between them again.

Activation checkpointing computes the forward again up to the last tensor that was saved. ``_Return`` saves none, only the plan: outputs
are not sent a second time, and all ranks stop at the same place whatever they received. Where that is before the arrival, ``abandon``
waits.
Every rank of the group must take part in every call, with zero tokens too, in forward and in backward.
Exercise it: ``pytest tests/ms4_train/parallel/test_exchange_flight.py``.

Shape suffixes: t tokens of this rank, k experts of a token, s rows sent, r rows received, b bytes, d hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ms4_kernels.moe.gather_sum import gather_sum
from ms4_train.model.moe import Arrivals
from ms4_train.parallel import traffic
from ms4_train.parallel.exchange_plan import Plan


class Transfer:
    """Rows under way between the ranks of a group: the first ``sent[0]`` go to rank 0, and so on; ``received[p]`` come from rank p."""

    def __init__(self, rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> None:
        self._rows: Tensor | None = rows.contiguous()
        self._out: Tensor | None = rows.new_empty(sum(received), *rows.shape[1:])
        self._work: Any = dist.all_to_all_single(self._out, self._rows, received, sent, group=group, async_op=True)

    def wait(self) -> Tensor:
        """The rows that came. Call it once; nothing is kept."""
        assert self._out is not None
        self._work.wait()
        out, self._rows, self._out, self._work = self._out, None, None, None
        return out


class Flight:
    """One call's tokens between their ranks and their experts'. Holds rows only while they travel.

    Args:
        plan: of the call.
        group: expert-parallel ranks.
        local_ids_sk: int32, as in ``OutgoingRows``.
        adapter_t: the index of each token's adapter, where the plan says that rows carry one.
    """

    def __init__(self, plan: Plan, group: dist.ProcessGroup, local_ids_sk: Tensor, adapter_t: Tensor | None) -> None:
        self.plan, self.group = plan, group
        self._local_ids_sk: Tensor | None = local_ids_sk
        self._adapter_t = adapter_t
        self._weights_dtype = torch.float32
        self._outbound: list[Transfer] = []
        self._homebound: list[Transfer | None] = []

    def depart(self, hidden_td: Tensor, weights_tk: Tensor) -> None:
        """Start hidden states, and beside them one row of bytes: K weights in their type, K int32 expert ids, int32 adapter if any."""
        assert self._local_ids_sk is not None
        token_s = self.plan.token_s
        parts = [weights_tk.index_select(0, token_s), self._local_ids_sk]
        if self._adapter_t is not None:
            parts.append(self._adapter_t.index_select(0, token_s).int().unsqueeze(1))
        # clone: a tensor without values, or of a single column, passes for contiguous with strides that bytes cannot have
        label_sb = torch.cat([part.clone(memory_format=torch.contiguous_format).view(torch.uint8) for part in parts], 1)
        self._local_ids_sk = self._adapter_t = None
        self._weights_dtype = weights_tk.dtype
        self._outbound = [self._to_experts(hidden_td.index_select(0, token_s)), self._to_experts(label_sb)]
        traffic.count("dispatch", self.plan.remote_sent() * hidden_td.shape[1] * hidden_td.element_size())
        traffic.count("metadata", self.plan.remote_sent() * label_sb.shape[1])

    def arrive(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Wait for what came: hidden states [R, d], weights [R, K], local expert ids int64 [R, K], adapters int64 [R] or None."""
        hidden_rd, label_rb = (transfer.wait() for transfer in self._outbound)
        self._outbound = []
        width, index = self._weights_dtype.itemsize, 4
        top_k = (label_rb.shape[1] - index * self.plan.by_adapter) // (width + index)
        # clone: a slice of a single row passes for contiguous, at a place where its type must not lie
        weights_rk = label_rb[:, : top_k * width].clone(memory_format=torch.contiguous_format).view(self._weights_dtype)
        rest_r = label_rb[:, top_k * width :].clone(memory_format=torch.contiguous_format).view(torch.int32).long()
        return hidden_rd, weights_rk, rest_r[:, :top_k].contiguous(), rest_r[:, top_k].contiguous() if self.plan.by_adapter else None

    def start_gradients(self, dhidden_rd: Tensor | None, dweights_rk: Tensor | None) -> None:
        """Start the gradients of what arrived on their way home, those that are wanted."""
        plan = self.plan
        kinds: tuple[traffic.Kind, ...] = ("combine", "metadata")
        for kind, gradient in zip(kinds, (dhidden_rd, dweights_rk), strict=True):
            if gradient is not None:
                traffic.count(kind, plan.remote_received() * gradient.shape[1] * gradient.element_size(), backward=True)
            self._homebound.append(None if gradient is None else self._to_tokens(gradient))

    def take_gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """Wait for them, and add up each token's: [T, d], [T, K]. A slot's weight has its gradient in one row and zeros in the others."""
        dhidden_td, dweights_tk = (
            None if transfer is None else gather_sum(transfer.wait(), self.plan.row_tj) for transfer in self._homebound
        )
        self._homebound = []
        return dhidden_td, dweights_tk

    def bring_home(self, out_rd: Tensor) -> Tensor:
        """Send the experts' outputs to their tokens, and add up each token's, [T, d]."""
        traffic.count("combine", self.plan.remote_received() * out_rd.shape[1] * out_rd.element_size())
        return gather_sum(self._to_tokens(out_rd).wait(), self.plan.row_tj)

    def send_out(self, dout_td: Tensor) -> Tensor:
        """The backward of :meth:`bring_home`: each row gets the gradient of its token's output, [R, d]."""
        traffic.count("dispatch", self.plan.remote_sent() * dout_td.shape[1] * dout_td.element_size(), backward=True)
        return self._to_experts(dout_td.index_select(0, self.plan.token_s)).wait()

    def abandon(self) -> None:
        """Wait for rows that nobody will take."""
        while self._outbound:
            self._outbound.pop().wait()

    def _to_experts(self, rows_s: Tensor) -> Transfer:
        return Transfer(rows_s, self.plan.sent, self.plan.received, self.group)

    def _to_tokens(self, rows_r: Tensor) -> Transfer:
        return Transfer(rows_r, self.plan.received, self.plan.sent, self.group)


class Dispatched:
    """Tokens under way, as ``Mistral4Experts`` takes them.

    Attributes:
        hidden_rd: stands for the hidden states that will arrive: their shape and place in the graph, without memory.
        weights_rk: likewise for the routing weights.
    """

    def __init__(self, flight: Flight, hidden_td: Tensor, weights_tk: Tensor) -> None:
        # Apart from the flight, which the graph holds: that must not hold the graph.
        self._flight = flight
        self.hidden_rd, self.weights_rk = _Depart.apply(hidden_td, weights_tk, flight)  # type: ignore[misc]

    def finish(self, hidden_rd: Tensor, weights_rk: Tensor, compute: Callable[[Arrivals], Tensor]) -> Tensor:
        """Wait, let this rank's experts compute, and return the sum of each token's experts, [T, d]. Takes the two stand-ins."""
        arrived = _Arrive.apply(hidden_rd, weights_rk, self._flight)
        out_rd = compute(Arrivals(*arrived, self._flight.plan.received_pairs))  # type: ignore[misc]
        del arrived
        return _Return.apply(out_rd, self._flight)  # type: ignore[return-value]

    def abandon(self) -> None:
        """Wait for rows that nobody will take; nothing where they were taken."""
        self._flight.abandon()


class _Depart(torch.autograd.Function):
    """Starts the rows. Its outputs are stand-ins without memory, [R, d] and [R, K]; so are, to it, the gradients that it is given."""

    @staticmethod
    def forward(ctx: Any, hidden_td: Tensor, weights_tk: Tensor, flight: Flight) -> tuple[Tensor, Tensor]:
        ctx.flight = flight
        flight.depart(hidden_td, weights_tk)
        rows = sum(flight.plan.received)
        inputs = (hidden_td, weights_tk)
        stand_ins = [torch.empty_strided((rows, x.shape[1]), (0, 0), dtype=x.dtype, device=x.device) for x in inputs]
        unwanted = [stand_in for stand_in, needed in zip(stand_ins, ctx.needs_input_grad[:2], strict=True) if not needed]
        ctx.mark_non_differentiable(*unwanted)
        return stand_ins[0], stand_ins[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return *ctx.flight.take_gradients(), None


class _Arrive(torch.autograd.Function):
    """Waits for the rows: hidden states, expert ids, routing weights and adapters, as ``Arrivals`` has them."""

    @staticmethod
    def forward(ctx: Any, hidden_rd: Tensor, weights_rk: Tensor, flight: Flight) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        ctx.flight = flight
        arrived = flight.arrive()
        wanted = (*ctx.needs_input_grad[:2], False, False)
        ctx.mark_non_differentiable(*(x for x, needed in zip(arrived, wanted, strict=True) if x is not None and not needed))
        return arrived[0], arrived[2], arrived[1], arrived[3]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        dhidden_rd, _, dweights_rk, _ = grad_outputs
        needs_hidden, needs_weights, _ = ctx.needs_input_grad
        wanted = dhidden_rd if needs_hidden else None, dweights_rk if needs_weights else None
        ctx.flight.start_gradients(*wanted)
        return *wanted, None  # of the stand-ins' shapes; what counts is what travels


class _Return(torch.autograd.Function):
    """Outputs to their tokens, which add them up."""

    @staticmethod
    def forward(ctx: Any, out_rd: Tensor, flight: Flight) -> Tensor:
        ctx.flight = flight
        return flight.bring_home(out_rd)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.flight.send_out(grad_outputs[0]), None
