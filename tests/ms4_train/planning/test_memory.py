"""Planned bytes against tensors that were counted: of one process to the byte, of two ranks under ZeRO 0 to 3 within paddings."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from support.distributed import run_ranks
from support.models import tiny_config, tiny_model

from ms4_train.adapters import attach
from ms4_train.checkpoint.page_locked import page_locked_bytes
from ms4_train.checkpoint.part import SHARD_BYTES, HeldPart
from ms4_train.config.schema import SftRun
from ms4_train.model import SequenceLayout, TextConfig, VisionConfig
from ms4_train.parallel import Mesh, make_engine
from ms4_train.planning import Base, host_warning, memory_warning, plan_memory
from ms4_train.planning.memory import PROGRAM, RESERVED, _sub_groups
from ms4_train.weights.layouts.pieces import ModelConfig
from ms4_train.weights.layouts.tables import Layout

WORKER = Path(__file__).with_name("memory_worker.py")
ADAPTER = {"r": 4, "preset": "attention+experts"}


def run_of(dtype="bfloat16", adapter=None, ranks=1, **parallel):
    values = {"recipe": "sft", "output_dir": "x", "data": {"train": [{"path": "a"}], "max_length": 64}}
    values |= {"model": {"path": "x", "dtype": dtype}, "parallel": {"expert_parallel_size": ranks, **parallel}}
    values |= {"training": {"train_router": adapter is None}} | ({} if adapter is None else {"adapter": adapter})
    return SftRun.model_validate(values)


def plan_of(sizes, processes=1, layout=Layout.HF, **run):
    return plan_memory(run_of(**run), Base(ModelConfig(tiny_config(**sizes)), layout), processes)


def bytes_of(tensors):
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())


@pytest.mark.parametrize("adapter", [None, ADAPTER], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_process_to_the_byte(dtype, adapter):
    run = run_of(dtype, adapter)
    model = tiny_model(dtype=getattr(torch, dtype)).train()
    if adapter is not None:
        attach(model, run.adapter)
    engine = make_engine(model, Mesh(), training=run.training, parallel=run.parallel)
    ids_t = torch.arange(64)
    engine.backward(model.lm_head(model(ids_t, SequenceLayout.from_lengths((64,)))).float().sum(), is_last_micro_batch=True)
    plan = plan_of({}, dtype=dtype, adapter=adapter)
    parameters, masters = list(model.parameters()), engine._masters
    assert plan.weights == bytes_of(parameters)
    state = [tensor for each in engine._optimizer.state.values() for name, tensor in each.items() if name != "step"]
    assert plan.optimizer == bytes_of(state) + (bytes_of(masters) if dtype == "bfloat16" else 0)
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    in_flight = max(map(torch.Tensor.numel, trained)) * 2 if dtype == "bfloat16" else 0  # one gradient in bf16, before it is added
    assert plan.gradients == bytes_of(master.grad for master in masters if master.grad is not None) + in_flight
    assert plan.update == 0


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """(case, most bytes at each moment) of every case; one launch of two ranks."""
    out = tmp_path_factory.mktemp("memory") / "out.json"
    run_ranks(WORKER, str(out), timeout=580)
    spec = importlib.util.spec_from_file_location("memory_worker", WORKER)
    worker = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(worker)  # type: ignore[union-attr]
    return worker.SIZES, list(zip(worker.CASES, json.loads(out.read_text()), strict=True))


def two_ranks(sizes, case, **changes):
    run = {"dtype": case["dtype"], "adapter": case.get("adapter"), "ranks": 2, "zero_stage": case["stage"]}
    return plan_of(sizes, 2, **(run | changes))


@pytest.mark.slow
def test_two_ranks_hold_what_was_planned(counted):
    sizes, cases = counted
    for case, most in cases:
        plan, ready = two_ranks(sizes, case), most["ready"]
        half = case["dtype"] == "bfloat16"
        kept = plan.weights + plan.optimizer
        # Stage 1 adds gradients up in fp32 and stage 3 in the weights' type, in memory that is there from the start.
        if case["stage"] in (1, 3):
            early = plan.gradients if case["stage"] == 3 else 2 * plan.gradients // 3 if half else 0
            kept += early
        assert ready["all"] == pytest.approx(kept, rel=0.01), case
        if half:
            in_fp32 = plan.optimizer + (2 * plan.gradients // 3 if case["stage"] == 1 else 0)
            assert ready["float32"] == pytest.approx(in_fp32, rel=0.01), case
        most_bytes = max(moment["all"] for moment in most.values())
        planned = plan.weights + plan.optimizer + plan.gradients + plan.update
        assert 0.8 * planned <= most_bytes <= 1.01 * planned + plan.activations, (case, most_bytes, planned)
        assert most["after"]["all"] <= 1.01 * ready["all"] + plan.gathered, case


@pytest.mark.slow
def test_control_a_plan_for_another_stage_does_not_fit(counted):
    sizes, cases = counted
    for (case, most), stage in ((cases[1], 2), (cases[2], 3), (cases[3], 1), (cases[0], 2)):
        other = two_ranks(sizes, case, zero_stage=stage)
        assert most["ready"]["all"] != pytest.approx(other.weights + other.optimizer, rel=0.01)


RELEASE = Base(ModelConfig(TextConfig(), VisionConfig()), Layout.NATIVE_FP8)


def test_the_release_by_hand():
    """Numbers of spec section 1.3: 115,964,116,992 values in routed experts, 3,437,181,952 besides, vision included."""
    routed, rest = 115_964_116_992, 3_437_181_952
    frozen = 36 * 128 * 4096  # routers, frozen by default
    run = run_of(ranks=8, data_parallel_size=32)
    run = run.model_copy(update={"training": run.training.model_copy(update={"train_router": False})})
    plan = plan_memory(run, RELEASE, 32)
    assert plan.weights == 2 * (routed // 8 + rest)
    assert plan.optimizer == pytest.approx(12 * (routed + rest - frozen) / 32, rel=1e-6)
    assert plan.checkpoint == pytest.approx(12 * (routed + rest - frozen), rel=1e-6)
    spread = plan_memory(run.model_copy(update={"parallel": run.parallel.model_copy(update={"zero_stage": 3})}), RELEASE, 32)
    assert spread.weights == pytest.approx(2 * (routed + rest) / 32, rel=1e-6)
    assert spread.gathered == 2 * 1_050_000_000


def test_offloading_moves_state_to_the_host():
    plain = plan_of({}, 2, zero_stage=3)
    moved = plan_of({}, 2, zero_stage=3, offload_optimizer="cpu", offload_parameters="cpu")
    assert (moved.weights, moved.optimizer, moved.update) == (0, 0, 0)
    assert moved.device < plain.device
    values = plain.optimizer // 12
    # Weights in bf16; fp32 weights and moments; gradients in bf16 and in fp32; and each rank's copy of its part while that is saved.
    exact = PROGRAM + (2 + 12 + 2 + 4) * values + moved.checkpoint // 2
    assert moved.saving == plain.saving == moved.checkpoint // 2
    assert exact < moved.host < exact + (2 + 2 + 4) * values, "page-locked blocks are powers of two: less than twice what is in them"
    assert plain.host == PROGRAM + max(plain.weights, plain.checkpoint // 2)
    here = plan_memory(run_of(zero_stage=3, offload_optimizer="cpu"), Base(ModelConfig(tiny_config()), Layout.HF), 2, on_gpu=False)
    assert here.optimizer == plain.optimizer  # the host is the device


def test_page_locked_gradients_of_the_release_by_hand():
    """ZeRO 3 on 16 ranks: a layer's experts are 2^27 and 2^26 values of a rank, so five layers fill a block of 2^30."""
    run = run_of(ranks=8, data_parallel_size=16, zero_stage=3, offload_optimizer="cpu")
    frozen = run.training.model_copy(update={"train_router": False, "save_async": False})
    plan = plan_memory(run.model_copy(update={"training": frozen}), RELEASE, 16)
    experts, rest = 115_964_116_992 // 16, (3_437_181_952 - 36 * 128 * 4096) / 16
    # Seven blocks of five layers and one of a layer, 2^30 bytes; the others' matrices; their vectors, a few kB.
    gradients = 7 * 2**32 + 2**30 + 2**30 + 2**20
    assert plan.host == pytest.approx(PROGRAM + 12 * (experts + rest) + gradients + page_locked_bytes(int(2 * (experts + rest))), rel=1e-4)


def test_what_is_updated_at_once_ends_with_the_parameter_that_fills_it():
    third = 400_000_000
    assert list(_sub_groups([(third, third)] * 7)) == [3 * third, 3 * third, third]
    assert list(_sub_groups([])) == []


def saving_of(base, processes, *, on_gpu=True, training=(), **parallel):
    run = run_of(ranks=parallel.pop("ranks", 1), **parallel)
    changed = run.training.model_copy(update={"save_async": False, "train_router": False, **dict(training)})
    return plan_memory(run.model_copy(update={"training": changed}), base, processes, on_gpu=on_gpu)


def test_a_save_that_is_waited_for_holds_a_file_or_nothing():
    tiny = Base(ModelConfig(tiny_config()), Layout.HF)
    offloaded = saving_of(RELEASE, 16, ranks=8, data_parallel_size=16, zero_stage=3, offload_optimizer="cpu")
    assert offloaded.saving == 0  # it is on the host, and is written from there
    on_gpus = saving_of(RELEASE, 16, ranks=8, data_parallel_size=16, zero_stage=3)
    assert on_gpus.saving == SHARD_BYTES + 12 * 2**27  # the largest piece: a rank's half of 16 experts' first matrices
    assert on_gpus.host == PROGRAM + max(on_gpus.weights, on_gpus.saving)
    assert saving_of(tiny, 1).saving == saving_of(tiny, 1).checkpoint  # less than a file
    assert saving_of(tiny, 1, on_gpu=False).saving == 0
    assert saving_of(RELEASE, 16, ranks=8, data_parallel_size=16, training={"save_async": True, "save_strategy": "no"}).saving == 0


def test_the_copy_of_a_save_in_the_background_is_the_state():
    """On a CPU it lies beside it, and is counted there."""
    run = run_of("float32")
    model = tiny_model(dtype=torch.float32).train()
    part = HeldPart.copy_of(make_engine(model, Mesh(), training=run.training, parallel=run.parallel))
    copied = sum(tensor.untyped_storage().nbytes() for piece in part.pieces for tensor in piece.tensors.values())
    tiny = Base(ModelConfig(tiny_config()), Layout.HF)
    plan, waits = (saving_of(tiny, 1, on_gpu=False, training={"save_async": each, "train_router": True}) for each in (True, False))
    assert plan.saving == plan.checkpoint == pytest.approx(copied, abs=1 << 20)
    assert plan.device == waits.device + plan.saving
    assert ("copy of the state while it is saved", plan.saving) in list(plan.rows())


def test_the_parts_add_up_and_are_printed():
    plan = plan_of({}, 2, ranks=2)
    passing = plan.activations + plan.exchange + plan.logits + plan.gathered
    assert plan.device == RESERVED + plan.weights + plan.optimizer + plan.gradients + max(passing, plan.update)
    lines = list(plan.lines())
    assert lines[0] == "memory of each of 2 ranks, in MB:"
    assert len(lines) == 13
    assert next(plan_of({}).lines()) == "memory, in MB:"
    assert next(dataclasses.replace(plan, weights=10**11).lines()) == "memory of each of 2 ranks, in GB:"
    assert any(line.startswith("  together on the device, at most") and line.endswith(f"{plan.device / 1e6:.2f}") for line in lines)


def test_a_device_with_less_is_named():
    plan = plan_of({})
    assert memory_warning(plan, plan.device) is None
    assert memory_warning(plan, plan.device - 2_000_000_000) == (
        f"warning: the device has {(plan.device - 2_000_000_000) / 1e9:.2f} GB, about 2.00 GB less than this run needs. "
        "Raise parallel.expert_parallel_size or zero_stage, or lower data.max_length."
    )


def test_a_machine_whose_memory_its_ranks_overfill_is_named():
    plan = dataclasses.replace(plan_of({}), host=100_000_000_000)
    assert host_warning(plan, 800_000_000_000, 8) is None
    assert host_warning(plan, 790_000_000_000, 8) == (
        "warning: this machine has 790 GB of memory, about 10.0 GB less than this run needs beside its GPUs (8 ranks, 100 GB each). "
        "Spread it over more machines, or set training.save_async=false, which saves without a copy."
    )
    assert "(one rank)" in (host_warning(plan, 1, 1) or "")
    assert host_warning(dataclasses.replace(plan, on_gpu=False), 1, 8) is None  # there the device is the machine
