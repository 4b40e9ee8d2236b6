"""State out of DeepSpeed and back, and from two ranks into one process."""

import pytest
import torch
from safetensors.torch import load_file
from support.parallel_runs import TRAINING, run_steps, small_model

from ms4_train.adapters import attach
from ms4_train.config.schema import AdapterSection, ParallelSection
from ms4_train.parallel import Mesh, make_engine

RESUMED = ["resume", "stage_1", "stage_3", "stage_3_lora", "bf16", "bf16_stage_1"]
ATTENTION = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def _assert_resumed(result):
    """Exported, imported into an engine that had taken a step on other rows, exported again; then two more steps of both."""
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
def test_state_goes_round_on_four_ranks(four_rank_report):
    for report in four_rank_report:
        _assert_resumed(report["resume"])


@pytest.mark.parametrize("name", ["full", "lora"])
def test_saved_on_two_ranks_resumed_on_one(deepspeed_report, deepspeed_folder, name):
    """The state of two ranks, as files; one process goes on with the rows of both and reports their losses (1e-5: fp32 sums)."""
    stored = {}
    for key, tensor in load_file(deepspeed_folder / f"{name}.safetensors").items():
        parameter, kind = key.rsplit("/", 1)
        stored.setdefault(parameter, {})[kind] = tensor
    model = small_model()
    if name == "lora":
        attach(model, AdapterSection(r=3, lora_alpha=6.0, target_modules=ATTENTION, target_parameters=EXPERTS))
    else:
        torch.nn.init.zeros_(model.lm_head.weight)
    engine = make_engine(model, Mesh(), training=TRAINING, parallel=ParallelSection())
    assert sorted(stored) == sorted(state.name for state in engine.export_state())
    engine.import_state(stored.__getitem__)
    assert {state.step for state in engine.export_state()} == {5}
    losses = [record.loss for record in run_steps(engine, model, 2, range(5, 7), gradients=False)]
    assert losses == pytest.approx(deepspeed_report[0][name]["continued"], abs=1e-5)
