"""Tokens to other ranks' experts and back, against one call of the operation with all experts."""

from types import SimpleNamespace
from unittest.mock import patch

import pytest
from support.exchange_cases import ROUTINGS
from support.models import tiny_model
from support.quantised_models import quantised_tiny

from ms4_train.errors import ParallelError
from ms4_train.parallel import Mesh, shard_experts

RANKS = [2, 4]


def every_rank(reports, ranks):
    assert len(reports[ranks]) == ranks
    return reports[ranks]


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("routing", ROUTINGS)
def test_output_and_every_gradient_equal_one_call_with_all_experts(exchange_reports, ranks, routing):
    """fp64, ranks with different numbers of tokens; 1e-12 allows for the order of sums only.

    ``skewed``: most pairs go to three experts. ``one_expert``: all do to one. ``one_rank_each``: all experts of a token are on one rank.
    ``zero_tokens``: every other rank has none. ``nobody``: no rank has any.
    """
    for report in every_rank(exchange_reports, ranks):
        assert report["operation"][routing] < 1e-12


@pytest.mark.parametrize("ranks", RANKS)
def test_the_comparison_notices_experts_in_the_wrong_place(exchange_reports, ranks):
    for report in every_rank(exchange_reports, ranks):
        assert report["operation"]["rolled_experts"] > 0.1


@pytest.mark.parametrize("ranks", RANKS)
def test_types_are_kept_and_results_repeat_bit_for_bit(exchange_reports, ranks):
    """bf16 hidden and stacks, fp32 weights: [out, d hidden, d weights, d gate_up, d down]."""
    for report in every_rank(exchange_reports, ranks):
        assert report["operation"]["types"] == [f"torch.{name}" for name in ("bfloat16", "bfloat16", "float32", "bfloat16", "bfloat16")]
        assert report["operation"]["repeatable"]


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("case", ["plain", "no_tokens", "recomputed", "recomputed_no_tokens"])
def test_router_shared_expert_and_experts_train_as_in_one_process(exchange_reports, ranks, case):
    """fp64, every gradient; ``recomputed``: under activation checkpointing; ``no_tokens``: the first rank has none."""
    for report in every_rank(exchange_reports, ranks):
        assert report["block"][case] < 1e-12


def test_rows_find_their_adapter_on_other_ranks(exchange_reports):
    """Against a block with all experts and the same rows. The control: what acts differs from what the first rank's rows ask for."""
    reports = every_rank(exchange_reports, 4)
    for report in reports:
        assert report["adapters"]["error"] < 1e-12
        assert report["adapters"]["bytes_differ"] == 0
    assert reports[0]["adapters"]["without_segments"] > 0.1


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
