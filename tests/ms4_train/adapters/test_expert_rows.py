"""Factors of several adapters side by side: each adapter's product is the same, in fp64."""

import torch

from ms4_kernels.moe import ExpertLora
from ms4_train.adapters.expert_rows import side_by_side

EXPERTS, HIDDEN, WIDTH = 5, 12, 7


def pair(rank, inputs, outputs):
    return torch.randn(EXPERTS, rank, inputs, dtype=torch.float64), torch.randn(EXPERTS, outputs, rank, dtype=torch.float64)


def product(a, b, scale):
    return scale * torch.einsum("eor,eri->eoi", b, a)


def test_products_of_other_ranks_and_scales():
    torch.manual_seed(0)
    both = ExpertLora(*pair(3, HIDDEN, 2 * WIDTH), *pair(2, WIDTH, HIDDEN), gate_up_scale=0.7, down_scale=3.0)
    one = ExpertLora(*pair(5, HIDDEN, 2 * WIDTH), gate_up_scale=1.3)
    joined = side_by_side([both, one])
    assert (joined.num_adapters, joined.gate_up_scale, joined.down_scale) == (2, 1.0, 1.0)
    for index, lora in enumerate((both, one)):
        found = joined.adapter(index)
        torch.testing.assert_close(
            product(found.gate_up_a_erd, found.gate_up_b_eir, 1.0), product(lora.gate_up_a_erd, lora.gate_up_b_eir, lora.gate_up_scale)
        )
    found = joined.adapter(0)
    torch.testing.assert_close(product(found.down_a_ern, found.down_b_edr, 1.0), product(both.down_a_ern, both.down_b_edr, 3.0))
    assert not joined.adapter(1).down_a_ern.any()
    assert not joined.adapter(1).down_b_edr.any()


def test_a_stack_that_no_adapter_changes_stays_away():
    joined = side_by_side([ExpertLora(*pair(3, HIDDEN, 2 * WIDTH))])
    assert joined.down_a_ern is None
    assert joined.down_b_edr is None
