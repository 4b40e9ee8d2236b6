"""Tokens to other ranks' experts and back, against one call of the operation with all experts."""

from types import SimpleNamespace
from unittest.mock import patch

import pytest
from support.models import tiny_model
from support.quantised_models import quantised_tiny

from ms4_train.errors import ParallelError
from ms4_train.parallel import Mesh, shard_experts


@pytest.mark.parametrize("case", ["random", "one_expert", "zero_tokens", "nobody", "recomputed"])
def test_output_and_every_gradient_equal_one_call_with_all_experts(light_report, case):
    """fp64 on two ranks with different numbers of tokens; 1e-12 allows for the order of sums only.

    ``one_expert``: all pairs go to one rank. ``zero_tokens``: one rank has none. ``recomputed``: under activation checkpointing.
    """
    for report in light_report:
        assert report["exchange"][case] < 1e-12


def test_the_comparison_notices_experts_in_the_wrong_place(light_report):
    for report in light_report:
        assert report["exchange"]["rolled_experts"] > 0.1


def test_types_are_kept_and_results_repeat_bit_for_bit(light_report):
    """bf16 hidden and stacks, fp32 weights: [out, d hidden, d weights, d gate_up, d down]."""
    for report in light_report:
        assert report["exchange"]["types"] == ["torch.bfloat16", "torch.bfloat16", "torch.float32", "torch.bfloat16", "torch.bfloat16"]
        assert report["exchange"]["repeatable"]


def test_sharding_leaves_each_rank_its_own_experts(light_report):
    for report in light_report:
        sharding = report["sharding"]
        assert sharding["own_slice"]
        assert sharding["local_experts"] == sharding["local_experts_again"] == 4
        assert sharding["storage_bytes"] * 2 == sharding["full_bytes"]


def test_a_stack_of_another_size_is_refused_by_name(light_report):
    for report in light_report:
        assert report["sharding"]["error"].startswith(
            "model.layers.1.mlp.experts.down_proj: the tensor has 1 experts; expected 8, or the 4"
        )


def test_quantised_stacks_are_sharded_and_train_adapters_as_one_process_does(light_report):
    """fp32, two steps: 1e-5 allows for the order of sums. Replicas that differ at the start are made equal; the control leaves them."""
    for report in light_report:
        assert report["quantised"]["local_experts"] == 4
        assert report["quantised"]["mended"] < 1e-5
        assert report["quantised"]["left"] > 1e-3


def test_quantised_stacks_of_another_size_are_refused_by_name():
    model = quantised_tiny("fp8")
    model.model.layers[1].mlp.experts.down_proj.keep_experts(0, 1)
    mesh = SimpleNamespace(expert_parallel_size=2, expert_parallel_group=object(), expert_range=lambda _: (0, 4))
    with (
        patch("ms4_train.parallel.exchange.ExpertExchange"),
        pytest.raises(ParallelError, match=r"layers\.1\.mlp\.experts\.down_proj: the tensor has 1 experts; expected 8, or the 4"),
    ):
        shard_experts(model, mesh)
    assert model.model.layers[0].mlp.experts.down_proj.shape[0] == 4


def test_one_process_keeps_everything():
    model = tiny_model()
    shard_experts(model, Mesh())
    assert all(layer.mlp.experts.exchange is None and layer.mlp.experts.num_local_experts == 8 for layer in model.model.layers)


def test_none_of_this_needs_deepspeed(light_report):
    assert not any(report["deepspeed_imported"] for report in light_report)
