"""A row's result is the same bits alone and in company, whole and in pieces, with one thread and with two."""

from __future__ import annotations

import pytest
import torch
from support.models import tiny_config, tiny_model
from support.network_weights import make_pools, network_weights
from support.quantised_models import quantised_tiny

from ms4_kernels.native import library, why_not
from ms4_kernels.step import NetworkStep

pytestmark = pytest.mark.skipif(library() is None, reason=why_not() or "no library")

LENGTH, BLOCK = 150, 7
TABLE = list(range(22))
CASES = {
    "fp32": (lambda: tiny_model(), torch.float32),
    "bf16": (lambda: tiny_model(dtype=torch.bfloat16), torch.bfloat16),
    "fp8": (lambda: quantised_tiny("fp8"), torch.float8_e4m3fn),
    "nvfp4": (lambda: quantised_tiny("nvfp4"), torch.float32),
    "odd": (lambda: tiny_model(tiny_config(hidden_size=61, moe_intermediate_size=27, kv_lora_rank=19, qk_nope_head_dim=7)), torch.float32),
}


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_company_pieces_and_threads_change_no_bit(name):
    make, pool_type = CASES[name]
    model = make()
    weights, width = network_weights(model), model.config.hidden_size
    embedding_td, other_td, single_td = torch.randn(LENGTH, width), torch.randn(90, width), torch.randn(1, width)

    def fresh() -> tuple[NetworkStep, list[torch.Tensor]]:
        pools = make_pools(model, 64, BLOCK, pool_type)
        return NetworkStep(weights, pools, BLOCK), pools

    step, pools = fresh()
    alone_td = step.run(embedding_td, [LENGTH], [0], [TABLE], [-1], range(LENGTH))
    assert alone_td.isfinite().all()

    mixed_td = torch.cat((other_td, embedding_td, single_td))
    arguments = (mixed_td, [90, LENGTH, 1], [0, 0, 0], [range(30, 50), TABLE, [60]], [-1] * 3, range(90, 90 + LENGTH))
    assert torch.equal(fresh()[0].run(*arguments), alone_td)
    torch.set_num_threads(2)
    assert torch.equal(fresh()[0].run(*arguments), alone_td)
    torch.set_num_threads(1)

    for cuts in ([1] * LENGTH, [64, 64, 22], [3, 60, 1, 30, 56]):
        step, other_pools = fresh()
        pieces, start = [], 0
        for cut in cuts:
            pieces.append(step.run(embedding_td[start : start + cut], [cut], [start], [TABLE], [-1], range(cut)))
            start += cut
        assert torch.equal(torch.cat(pieces), alone_td)
        for pool, other in zip(pools, other_pools, strict=True):
            assert torch.equal(pool.view(torch.uint8)[:21], other.view(torch.uint8)[:21])

    logits_tv = step.logits(alone_td, [-1] * LENGTH)
    for row in (0, 63, 64, LENGTH - 1):
        assert torch.equal(step.logits(alone_td[row : row + 1], [-1]), logits_tv[row : row + 1])


@torch.inference_mode()
def test_control_the_last_bit_of_one_value_shows():
    model = tiny_model()
    embedding_td = torch.randn(LENGTH, 64)
    step = NetworkStep(network_weights(model), make_pools(model, 64, BLOCK), BLOCK)
    before_td = step.run(embedding_td, [LENGTH], [0], [TABLE], [-1], range(LENGTH))
    embedding_td[40, 9] = torch.nextafter(embedding_td[40, 9], torch.tensor(9.0))
    after_td = step.run(embedding_td, [LENGTH], [0], [TABLE], [-1], range(LENGTH))
    assert torch.equal(after_td[:40], before_td[:40])
    assert not torch.equal(after_td[40:], before_td[40:])
