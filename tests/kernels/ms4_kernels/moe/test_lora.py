"""Half a pair of LoRA matrices is refused."""

from __future__ import annotations

import pytest
import torch

from ms4_kernels.moe import ExpertLora


def test_pairs_come_whole():
    ExpertLora(down_a_ern=torch.zeros(1, 2, 3), down_b_edr=torch.zeros(1, 4, 2))
    with pytest.raises(ValueError, match="gate_up"):
        ExpertLora(gate_up_a_erd=torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="down"):
        ExpertLora(down_b_edr=torch.zeros(1, 4, 2))
