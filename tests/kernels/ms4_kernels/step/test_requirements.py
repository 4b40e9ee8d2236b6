"""What the compiled step refuses, and why; every refusal beside a network that it takes."""

from __future__ import annotations

import pytest
import torch
from support.models import tiny_model
from support.network_weights import make_pools, network_weights
from support.quantised import fp8_weight

from ms4_kernels.moe.lora import ExpertLora
from ms4_kernels.native import library, why_not
from ms4_kernels.step import LowRank, NetworkStep, Projection, against

pytestmark = pytest.mark.skipif(library() is None, reason=why_not() or "no library")


def parts():
    model = tiny_model()
    return network_weights(model), make_pools(model, 4, 8)


def spoil_type(weights, pools):
    weights.layers[1].q_b = Projection(weights.layers[1].q_b.weight.double())


def spoil_contiguity(weights, pools):
    weights.layers[0].o = Projection(weights.layers[0].o.weight.t().contiguous().t())


def spoil_place(weights, pools):
    weights.final_norm = weights.final_norm.to("meta")


def spoil_quantised_router(weights, pools):
    weights.layers[0].router = fp8_weight(8, 64)


def spoil_shape(weights, pools):
    weights.layers[1].shared_up = Projection(torch.zeros(33, 64))


def spoil_adapter(weights, pools):
    weights.layers[0].kv_b.adapters[0] = (LowRank(torch.zeros(2, 16), torch.zeros(95, 2), 1.0),)


def spoil_expert_adapter(weights, pools):
    lora = ExpertLora(down_a_ern=torch.zeros(7, 2, 32), down_b_edr=torch.zeros(7, 64, 2))
    weights.layers[0].experts.adapters[0] = (lora,)


def spoil_pool_type(weights, pools):
    pools[1] = pools[1].half()


def spoil_pool_width(weights, pools):
    pools[:] = [pool[..., :-1].contiguous() for pool in pools]


def spoil_pool_number(weights, pools):
    pools.pop()


def spoil_top_k(weights, pools):
    weights.top_k = 9


SPOILS = {
    spoil_type: "layer 1 q_b is float64",
    spoil_contiguity: "layer 0 o is not a plain contiguous tensor",
    spoil_place: "final_norm is not a plain contiguous tensor",
    spoil_quantised_router: "layer 0 router is quantised",
    spoil_shape: "layer 1 shared_up is [33, 64], expected [32, 64]",
    spoil_adapter: "layer 0 kv_b adapter B is [95, 2], expected [96, 2]",
    spoil_expert_adapter: "layer 0 adapter A is [7, 2, 32], expected [8, 2, 32]",
    spoil_pool_type: "a pool of torch.float16",
    spoil_pool_width: "for 16 + 8 values a token",
    spoil_pool_number: "2 layers and 1 pools",
    spoil_top_k: "top_k 9",
}


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda spoil: spoil.__name__.removeprefix("spoil_"))
def test_what_is_refused(spoil):
    weights, pools = parts()
    assert against(weights, pools) == ""
    spoil(weights, pools)
    assert SPOILS[spoil] in against(weights, pools)
    with pytest.raises(ValueError, match="does not serve"):
        NetworkStep(weights, pools, 8)


def test_tensors_that_are_no_plain_ones_are_refused():
    class Other(torch.Tensor):
        pass

    weights, pools = parts()
    weights.layers[0].router = weights.layers[0].router.detach().as_subclass(Other)
    assert "layer 0 router is not a plain" in against(weights, pools)
