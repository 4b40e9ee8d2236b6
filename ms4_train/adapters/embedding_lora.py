"""LoRA on the embedding of tokens: ``E[id] + scale * B A[:, id]``, with PEFT's names and shapes.

Exercise it: ``pytest tests/ms4_train/adapters/test_embedding_lora.py``.

Shape suffixes: v vocabulary, d hidden, r rank; .. any axes of tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ms4_train.adapters.adapted import AdaptedModule, wide
from ms4_train.adapters.row_parts import row_parts


class _Factors(nn.Module):
    """A factor of each adapter, a parameter under the adapter's bare name; called, so that ZeRO 3 sees when one is needed."""

    def __getitem__(self, name: str) -> nn.Parameter:
        return self.get_parameter(name)


class _Rows(_Factors):
    """A of each adapter, [r, v]."""

    def forward(self, name: str, ids: Tensor) -> Tensor:
        return F.embedding(ids, self[name].t())


class _Up(_Factors):
    """B of each adapter, [d, r]."""

    def forward(self, name: str, low: Tensor) -> Tensor:
        return low @ self[name].t()


class LoraEmbedding(AdaptedModule):
    """An embedding with adapters in its place; parameters ``lora_embedding_A.NAME`` [r, v] and ``lora_embedding_B.NAME`` [d, r].

    As in PEFT A starts at zero and B does not, and there is no dropout.
    """

    base_layer: nn.Embedding

    def __init__(self, base: nn.Embedding) -> None:
        super().__init__(base)
        self.lora_embedding_A, self.lora_embedding_B = _Rows(), _Up()

    def add(self, name: str, *, rank: int, scale: float) -> None:
        """Add an adapter that does not act yet."""
        weight_vd = self.base_layer.weight
        self.lora_embedding_A.register_parameter(name, nn.Parameter(weight_vd.new_zeros(rank, weight_vd.shape[0])))
        self.lora_embedding_B.register_parameter(name, nn.Parameter(weight_vd.new_zeros(weight_vd.shape[1], rank)))
        self.scales[name] = scale

    def remove(self, name: str) -> None:
        """Take an adapter away."""
        for factors in (self.lora_embedding_A, self.lora_embedding_B):
            delattr(factors, name)
        self.forget(name)

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings [.., d] of ids [..], with the adapters of each row of the first axis, if there are axes."""
        y = self.base_layer(ids)
        parts = row_parts(self.names_of, ids.shape[:1].numel())
        if len(parts) == 1:
            return self._added(ids, y, parts[0].names)
        return torch.cat([self._added(ids[start:stop], y[start:stop], names) for names, start, stop in parts])

    def _added(self, ids: Tensor, y: Tensor, names: tuple[str, ...]) -> Tensor:
        """``y``, the base's embeddings of ``ids``, with what these adapters add."""
        total = y
        for name in names:
            total = total + self.lora_embedding_B(name, self.lora_embedding_A(name, ids)) * self.scales[name]
        return total.to(y.dtype)

    def changed_weight(self) -> Tensor:
        """``E`` with the acting adapters, at least fp32."""
        total_vd = wide(self.base_layer.weight)
        for name in self.acting:
            product_dv = wide(self.lora_embedding_B[name]) @ wide(self.lora_embedding_A[name])
            total_vd = torch.add(total_vd, product_dv.t(), alpha=self.scales[name])
        return total_vd

    def extra_repr(self) -> str:
        """Adapters with rank and scale."""
        return ", ".join(f"{name}: rank={self.lora_embedding_A[name].shape[0]}, scale={scale:g}" for name, scale in self.scales.items())
