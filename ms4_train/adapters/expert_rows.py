"""Several adapters of the same experts in one call of the experts operation: their factors side by side, and the one of each token.

Exercise it: ``pytest tests/ms4_train/adapters/test_expert_rows.py``.

Shape suffixes: l adapters, e experts, r adapter rank (the largest), i input features, o output features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ms4_kernels.moe import ExpertLora


def side_by_side(adapters: Sequence[ExpertLora]) -> ExpertLora:
    """One update with a leading axis of adapters: smaller ranks are filled up with zeros, scales are multiplied into B.

    Args:
        adapters: each without that axis; at least one, which need not adapt the same stacks.
    """
    gate_up = [(lora.gate_up_a_erd, lora.gate_up_b_eir, lora.gate_up_scale) for lora in adapters]
    down = [(lora.down_a_ern, lora.down_b_edr, lora.down_scale) for lora in adapters]
    return ExpertLora(*_joined(gate_up), *_joined(down))


@torch.no_grad()
def _joined(pairs: Sequence[tuple[Tensor | None, Tensor | None, float]]) -> tuple[Tensor, Tensor] | tuple[None, None]:
    present = [(index, a, b, scale) for index, (a, b, scale) in enumerate(pairs) if a is not None and b is not None]
    if not present:
        return None, None
    rank, (_, like_a, like_b, _) = max(a.shape[1] for _, a, _, _ in present), present[0]
    a_leri = like_a.new_zeros(len(pairs), like_a.shape[0], rank, like_a.shape[2])
    b_leor = like_b.new_zeros(len(pairs), like_b.shape[0], like_b.shape[1], rank)
    for index, a_eri, b_eor, scale in present:
        a_leri[index, :, : a_eri.shape[1]] = a_eri
        b_leor[index, ..., : b_eor.shape[2]] = b_eor * scale
    return a_leri, b_leor
