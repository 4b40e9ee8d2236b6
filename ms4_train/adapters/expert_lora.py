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
from ms4_train.adapters.adapted import Low
from ms4_train.adapters.expert_rows import side_by_side
from ms4_train.adapters.names import DEFAULT_ADAPTER
from ms4_train.adapters.row_parts import index_rows, row_parts
from ms4_train.errors import AdapterError
from ms4_train.model.quantised import QuantisedStack


class StackFactors(nn.Module):
    """One adapter of the experts of one layer: ``W_e + scale * B_e A_e`` for each adapted stack.

    Parameters ``gate_up_a_erd``, ``gate_up_b_eir``, ``down_a_ern`` and ``down_b_edr``; those of a stack that is not adapted are None.
    A starts uniform in +-1/sqrt(inputs) and B at zero, as PEFT starts its own, so an untrained adapter changes nothing.

    Args:
        num_experts: experts held by this process.
        hidden_size: d.
        expert_width: n.
        gate_up: rank and scale on ``gate_up_proj`` [e, 2n, d]; None leaves that alone.
        down: on ``down_proj`` [e, d, n].
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
        gate_up: Low | None,
        down: Low | None,
        like: Tensor | QuantisedStack,
    ) -> None:
        super().__init__()
        self.stack_scales = {"gate_up_proj": gate_up.scale if gate_up else 1.0, "down_proj": down.scale if down else 1.0}

        def pair(low: Low | None, inputs: int, outputs: int) -> tuple[nn.Parameter | None, nn.Parameter | None]:
            if low is None:
                return None, None
            a_eri = torch.empty(num_experts, low.rank, inputs, dtype=like.dtype, device=like.device)
            b_eor = torch.zeros(num_experts, outputs, low.rank, dtype=like.dtype, device=like.device)
            nn.init.uniform_(a_eri, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))
            return nn.Parameter(a_eri), nn.Parameter(b_eor)

        gate_up_a_erd, gate_up_b_eir = pair(gate_up, hidden_size, 2 * expert_width)
        down_a_ern, down_b_edr = pair(down, expert_width, hidden_size)
        self.register_parameter("gate_up_a_erd", gate_up_a_erd)
        self.register_parameter("gate_up_b_eir", gate_up_b_eir)
        self.register_parameter("down_a_ern", down_a_ern)
        self.register_parameter("down_b_edr", down_b_edr)

    def own_lora(self) -> ExpertLora:
        """The parameters as the experts operation takes them."""
        return ExpertLora(
            gate_up_a_erd=self.gate_up_a_erd,
            gate_up_b_eir=self.gate_up_b_eir,
            down_a_ern=self.down_a_ern,
            down_b_edr=self.down_b_edr,
            gate_up_scale=self.stack_scales["gate_up_proj"],
            down_scale=self.stack_scales["down_proj"],
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
        """The adapted stacks with rank and scale."""
        # Under ZeRO 3, which prints the model, a parameter is empty and its shape stands beside it.
        ranks = {stack: getattr(a_eri, "ds_shape", a_eri.shape)[1] for stack, (a_eri, _) in self.pairs().items()}
        return ", ".join(f"{stack}: rank={rank}, scale={self.stack_scales[stack]:g}" for stack, rank in ranks.items())


class StackedLora(StackFactors):
    """The adapters of the experts of one layer: ``default`` holds its parameters here, others in ``further.NAME``.

    Attributes:
        active: the adapters that act.
        further: all but ``default``, by name.
        unmerged: the stacks' bits from before a merge, by stack; empty where nothing is merged.
        kept: factors of all adapters side by side, with those they were made of; weights that change leave them as they are until
            ``release_decode``.
    """

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        expert_width: int,
        *,
        gate_up: Low | None,
        down: Low | None,
        like: Tensor | QuantisedStack,
    ) -> None:
        super().__init__(num_experts, hidden_size, expert_width, gate_up=gate_up, down=down, like=like)
        self.further = nn.ModuleDict()
        self.active: tuple[str, ...] = (DEFAULT_ADAPTER,) if self.pairs() else ()
        self.unmerged: dict[str, Tensor] = {}
        self.kept: tuple[list[nn.Parameter], ExpertLora] | None = None

    @property
    def adapters(self) -> tuple[str, ...]:
        """All adapters on these experts."""
        return ((DEFAULT_ADAPTER,) if self.pairs() else ()) + tuple(self.further)

    def take_default(self, factors: StackFactors) -> None:
        """Make ``default``, which is not there yet, of another's parameters."""
        for name, parameter in factors.named_parameters():
            self.register_parameter(name, parameter)  # type: ignore[arg-type]
        self.stack_scales = factors.stack_scales

    def remove(self, name: str) -> None:
        """Take an adapter away, merged ones aside."""
        if name == DEFAULT_ADAPTER:
            for parameter in ("gate_up_a_erd", "gate_up_b_eir", "down_a_ern", "down_b_edr"):
                setattr(self, parameter, None)
        else:
            del self.further[name]
        self.active = tuple(other for other in self.active if other != name)
        self.release_decode()

    def of(self, name: str) -> StackFactors:
        """The parameters of one adapter."""
        return self if name == DEFAULT_ADAPTER else self.further[name]  # type: ignore[return-value]

    def acting(self) -> list[StackFactors]:
        """The adapters whose products are added: the active ones, unless they are in the stacks already."""
        return [self.of(name) for name in self.names_of(None)]

    def names_of(self, adapter: str | None) -> tuple[str, ...]:
        """The adapters whose products belong to a row for this adapter, or, for None, to one for the model as it stands.

        Raises:
            AdapterError: the stacks are merged, so that no row can see them without the merged adapters.
        """
        if adapter is None:
            return () if self.unmerged else self.active
        if self.unmerged:
            raise AdapterError("the model's adapters are merged.", key=adapter, fix="unmerge them first.")
        return (adapter,) if adapter in self.adapters else ()

    def kernel_lora(self) -> ExpertLora | None:
        """What the experts operation adds to every row: the adapters that act."""
        return self._sum_of(self.names_of(None))

    def row_lora(self, rows: int) -> tuple[ExpertLora | None, Tensor | None]:
        """What the experts operation adds where rows are for several adapters, and the index of each row's, int64 [rows] (-1: none).

        Where all rows have the same there are no indices.
        """
        parts = row_parts(self.names_of, rows)
        if len(parts) == 1:
            return self._sum_of(parts[0].names), None
        return self.every_lora(), self.row_indices(rows)

    def row_indices(self, rows: int) -> Tensor:
        """The index, in :meth:`every_lora`, of what belongs to each row, int64 [rows] (-1: nothing). The same count on all processes."""
        choices, parts = self._choices(), row_parts(self.names_of, rows)
        indices = tuple(choices.index(part.names) if part.names else -1 for part in parts)
        return index_rows(indices, tuple(parts), next(self.parameters()).device)

    def every_lora(self) -> ExpertLora | None:
        """All that may belong to a row, side by side, without gradient; None where nothing may."""
        choices = self._choices()
        sources = [factor for names in choices for name in names for pair in self.of(name).pairs().values() for factor in pair]
        if not sources:
            return None
        if self.kept is None or [id(factor) for factor in self.kept[0]] != [id(factor) for factor in sources]:
            adapters = [lora for names in choices if (lora := self._sum_of(names)) is not None]
            self.kept = (sources, side_by_side(adapters))
        return self.kept[1]

    def _choices(self) -> list[tuple[str, ...]]:
        """What may belong to a row: the adapters that act, and each by itself."""
        choices = [self.names_of(None), *((name,) for name in self.adapters)]
        return [names for names in dict.fromkeys(choices) if names]

    def release_decode(self) -> None:
        """Drop what is kept from weights as they were."""
        self.kept = None

    def _sum_of(self, names: tuple[str, ...]) -> ExpertLora | None:
        """One adapter as it is, the sum of several as one of their ranks' sum."""
        acting = [self.of(name) for name in names]
        if not acting:
            return None
        if len(acting) == 1:
            return acting[0].own_lora()
        joined: dict[str, tuple[Tensor, Tensor] | tuple[None, None]] = {}
        for stack in ("gate_up_proj", "down_proj"):
            found = [(factors.stack_scales[stack], *factors.pairs()[stack]) for factors in acting if stack in factors.pairs()]
            a_eri = torch.cat([a_eri for _, a_eri, _ in found], dim=1) if found else None
            b_eor = torch.cat([b_eor * scale for scale, _, b_eor in found], dim=2) if found else None
            joined[stack] = (None, None) if a_eri is None or b_eor is None else (a_eri, b_eor)
        return ExpertLora(*joined["gate_up_proj"], *joined["down_proj"])
