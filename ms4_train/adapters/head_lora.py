"""LoRA on the language head, inside the chunked loss too: the low-rank logits are added to each chunk's, and no further matrix of the
head's size is made. ``ms4_train.training.loss`` calls it. Exercise it: ``pytest tests/ms4_train/adapters/test_head_lora.py``.

Shape suffixes: t tokens, d hidden, v vocabulary, r rank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ms4_train.adapters.adapted import wide
from ms4_train.adapters.linear_lora import LoraLinear
from ms4_train.model.network import LanguageHead


class LoraHead(LoraLinear):
    """A ``LanguageHead`` with adapters in its place."""

    def forward(self, x: Tensor, reduce: Callable[..., Tensor] | None = None) -> Tensor:
        """Logits, or ``reduce(hidden, weight, low_rank)``, ``low_rank`` being ([t, r], [v, r]) whose product belongs to the logits."""
        if reduce is None:
            return super().forward(x)
        acting = self.acting
        if not acting:
            return self.base_layer(x, reduce)
        if any(name in self.lora_magnitude_vector for name in acting):
            return self.base_layer(x, lambda hidden_td, head_vd: reduce(hidden_td, self._turned(head_vd)))
        return self._through(x, reduce, acting, [], [])

    def _through(self, x: Tensor, reduce: Callable[..., Tensor], names: tuple[str, ...], lows: list[Tensor], ups: list[Tensor]) -> Tensor:
        """Call B of each name inside one another, and the base innermost: each weight is read inside a call of its module (ZeRO 3)."""
        if not names:
            low_tr, up_vr = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1) for parts in (lows, ups))
            return self.base_layer(x, lambda hidden_td, head_vd: reduce(hidden_td, head_vd, (low_tr, up_vr)))
        name, *others = names
        low_tr = self.lora_A[name](self.lora_dropout[name](x)) * self.scales[name]
        return self.lora_B[name](low_tr, lambda low_tr, up_vr: self._through(x, reduce, tuple(others), [*lows, low_tr], [*ups, up_vr]))

    def _turned(self, head_vd: Tensor) -> Tensor:
        """The head's weight with the adapter of DoRA, with gradient; of the head's size."""
        (name,) = self.acting
        a_rd, b_vr = self.factors(name)
        ratio_v = self.lora_magnitude_vector[name](self._row_lengths(name))
        return (ratio_v[:, None] * (wide(head_vd) + self.scales[name] * wide(b_vr) @ wide(a_rd))).to(head_vd.dtype)

    def _make_b(self, rank: int) -> nn.Linear:
        return LanguageHead(rank, self.base_layer.out_features, bias=False)
