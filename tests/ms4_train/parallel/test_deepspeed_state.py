"""State out of DeepSpeed and back, and from two ranks into one process."""

import pytest
import torch
from support.parallel_runs import TRAINING, run_steps, small_model

from ms4_train.adapters import attach
from ms4_train.checkpoint import find_saved_run
from ms4_train.config.schema import AdapterSection, ParallelSection
from ms4_train.parallel import Mesh, make_engine

RESUMED = ["resume", "stage_1", "stage_3", "stage_3_lora", "bf16", "bf16_stage_1"]
ATTENTION = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def _assert_resumed(result):
    """Exported, imported into an engine that had taken a step on other rows, exported again; then two more steps of both."""
    assert result["held_once"]
    assert result["fresh_steps"] == [0]
    assert result["fresh_differs"]
    assert result["same_bits"]
    assert result["same_weights"]
    assert result["same_losses"]
    assert result["same_bits_later"]


@pytest.mark.parametrize("check", RESUMED)
def test_state_goes_round_bit_exactly(deepspeed_report, check):
    for report in deepspeed_report:
        _assert_resumed(report[check])


@pytest.mark.slow
@pytest.mark.parametrize("check", ["resume", "stage_1", "stage_3", "stage_3_lora", "bf16"])
def test_state_goes_round_on_four_ranks(four_rank_report, check):
    for report in four_rank_report:
        _assert_resumed(report[check])


def _assert_odd_sizes(reports):
    for report in reports:
        odd = report["odd_sizes"]
        assert odd["stage 1"]
        assert odd["stage 2"]
        assert odd["stage 3"]


def test_sizes_that_ranks_do_not_divide(deepspeed_report):
    """Every value held once, and back bit for bit; a value that two ranks or no rank held would be seen (test_deepspeed_setup.py)."""
    _assert_odd_sizes(deepspeed_report)


@pytest.mark.slow
def test_sizes_that_four_ranks_do_not_divide(four_rank_report):
    """Each piece of stage 3 lies in some rank's range: a single value is on one rank of four."""
    _assert_odd_sizes(four_rank_report)
    assert sum(report["odd_sizes"]["pieces 3"] for report in four_rank_report) == 4 + 4 + 4 + 1


def test_saved_in_one_stage_resumed_in_another(deepspeed_report):
    """ZeRO 2's fragments as files, read back as ZeRO 3's partitions, bit for bit."""
    for report in deepspeed_report:
        assert not report["full"]["stage_3_before"]
        assert report["full"]["stage_3_after"]


@pytest.mark.parametrize("name", ["full", "lora"])
def test_saved_on_two_ranks_resumed_on_one(deepspeed_report, deepspeed_folder, name):
    """The run state of two ranks; one process goes on with the rows of both and reports their losses (1e-5: fp32 sums)."""
    model = small_model()
    if name == "lora":
        attach(model, AdapterSection(r=3, lora_alpha=6.0, target_modules=ATTENTION, target_parameters=EXPERTS))
    else:
        torch.nn.init.zeros_(model.lm_head.weight)
    engine = make_engine(model, Mesh(), training=TRAINING, parallel=ParallelSection())
    saved = find_saved_run(deepspeed_folder / name, "auto", Mesh())
    assert (saved.step, saved.world_size) == (5, 2)
    saved.restore(engine, seed=0)
    assert {state.step for state in engine.export_state()} == {5}
    losses = [record.loss for record in run_steps(engine, model, 2, range(5, 7), gradients=False)]
    assert losses == pytest.approx(deepspeed_report[0][name]["continued"], abs=1e-5)
