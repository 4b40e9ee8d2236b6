"""Optimizer state and parameters on the CPU: the configuration, and parity with one process that knows nothing of DeepSpeed.

The one process, its rows and its skewed routers are those of ``support/parallel_matrix.py``; two micro batches a step, clipping on. State
goes out, into a fresh engine, and both go on alike, bit for bit.
"""

import json
from pathlib import Path

import pytest
import torch
from support.distributed import run_ranks
from support.models import tiny_model

from ms4_train.config.schema import ParallelSection
from ms4_train.parallel import Mesh
from ms4_train.parallel.deepspeed_setup import engine_config
from ms4_train.parallel.parameters import trained_parameters

WORKER = Path(__file__).parent / "zero3_worker.py"
FULL_AND_LORA = [f"offload_{stage}_{name}" for stage in (1, 2, 3) for name in ("full", "lora")]
FULL_AND_LORA += ["offload_both_full", "offload_both_lora", "offload_parameters_lora"]
BF16 = [f"offload_{stage}_bf16" for stage in (1, 2, 3)]
NOT_OFFLOADED = ["not_offloaded", "recomputed_stage_3_full"]


def assert_parity(found):
    assert found["first_loss"] < 1e-5
    assert found["loss"] < 1e-4
    assert found["norm"] < 1e-5
    assert found["gradient"] < 1e-4
    assert found["state"] < 1e-4
    assert found["flips"] == 0


def assert_resumed(found):
    assert found["fresh_differs"]
    assert found["same_bits"]
    assert found["same_step"]
    assert found["same_bits_later"]


def assert_offloaded(name, found):
    """Without a GPU everything lies on the CPU anyway; DeepSpeed's ways for offloading are known by what they keep between steps."""
    assert found["optimizer"] == "AdamW"
    assert found["all_on_cpu"]
    assert found["moments"]
    assert found["gradients_wait"] == (name.startswith("offload_") and "parameters" not in name)
    assert found["parameters_in_cpu_pool"] == ("both" in name or "parameters" in name or "brief" in name)


def test_both_offloaded_equal_one_process(zero3_report):
    for report in zero3_report:
        assert_parity(report["offload_brief"])
        assert_resumed(report["offload_brief"])
        assert_offloaded("offload_brief", report["offload_brief"])


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_offloading_equals_one_process_over_ten_steps(tmp_path, ranks):
    """Full and LoRA, ZeRO 1 to 3; with recomputed activations too. On four ranks each expert is held twice. ``not_offloaded``: control."""
    names = [*FULL_AND_LORA, *NOT_OFFLOADED] if ranks == 2 else ["offload_1_lora", "offload_2_full", "offload_both_full"]
    names += BF16 if ranks == 2 else []
    run_ranks(WORKER, str(tmp_path), "2", *names, ranks=ranks)
    for rank in range(ranks):
        report = json.loads((tmp_path / f"{rank}.json").read_text())
        for name in names:
            assert_resumed(report[name])
            assert_offloaded(name, report[name])
            if name in BF16:
                assert report[name]["first_loss"] < 0.01
                assert report[name]["norm"] < 0.05
            else:
                assert_parity(report[name])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_configuration_of_offloading(stage):
    trained = trained_parameters(tiny_model(), Mesh())
    plain = engine_config(trained, ParallelSection(zero_stage=stage))
    assert plain["zero_optimization"].keys() == {"stage", "reduce_bucket_size", "overlap_comm", "contiguous_gradients"}
    assert "zero_force_ds_cpu_optimizer" not in plain
    for pinned in (False, True):
        section = ParallelSection(zero_stage=stage, offload_optimizer="cpu", offload_parameters="cpu" if stage == 3 else "none")
        config = engine_config(trained, section, pin_memory=pinned)
        assert config["zero_force_ds_cpu_optimizer"] is False, "torch's AdamW; DeepSpeed's own would be compiled"
        assert config["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": pinned}
        assert config["zero_optimization"].get("offload_param") == ({"device": "cpu", "pin_memory": pinned} if stage == 3 else None)


def test_reductions_do_not_overlap():
    """See engine_config: overlapping with the experts' exchange was never tried on several GPUs."""
    config = engine_config(trained_parameters(tiny_model(dtype=torch.bfloat16), Mesh()), ParallelSection(zero_stage=3))
    assert config["zero_optimization"]["overlap_comm"] is False
    assert config["zero_optimization"]["contiguous_gradients"] is True
