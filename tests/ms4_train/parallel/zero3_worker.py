"""One rank of the checks of ZeRO 3 from files and of offloading. ``run_ranks(zero3_worker.py, folder, size, names...)`` writes
folder/RANK.json. The main rank computes what one process does.
"""

import contextlib
import copy
import dataclasses
import json
import sys
import time
from pathlib import Path
from unittest import mock

import torch
from support.checkpoints import ATTENTION, STACKS
from support.parallel_matrix import FULL, LORA, Case, apart, matrix_model, on_ranks, one_process
from support.parallel_runs import (
    TRAINING,
    everything_partitioned,
    reader,
    run_steps,
    same_bits,
    small_model,
    small_multimodal,
    stored_state,
)
from support.sft_files import sft_run

from ms4_recipes import prepare_model as preparing
from ms4_train.config.schema import ParallelSection
from ms4_train.model import Mistral3ForConditionalGeneration
from ms4_train.parallel import Mesh, deepspeed_setup, init_mesh, make_engine, shard_experts
from ms4_train.weights import save_model
from ms4_train.weights.reading.shares import WHOLE, share_of

STEPS = 10
LORA_RUN = {"r": 3, "lora_alpha": 6.0, "target_modules": ATTENTION, "target_parameters": STACKS}
FILES = {
    "files_brief": {"adapter": LORA_RUN | {"modules_to_save": ["model.norm", "lm_head"]}},
    "files_full": {},
    "files_lora": {"adapter": LORA_RUN | {"modules_to_save": ["model.norm", "lm_head"]}},
    "files_orthogonal": {"adapter": {"r": 4, "target_modules": ATTENTION, "init_lora_weights": "orthogonal"}},
    "files_vision": {},
    "files_pissa": {"adapter": {"r": 3, "target_modules": ATTENTION, "init_lora_weights": "pissa"}},
    "files_offloaded": {"parallel": {"offload_optimizer": "cpu", "offload_parameters": "cpu"}},
}
"""Sections of runs whose model is read from files, with shares and without."""
ACCUMULATED_FULL, ACCUMULATED_LORA = (dataclasses.replace(training, micro_batches=2) for training in (FULL, LORA))
OPTIMIZER, BOTH = {"offload_optimizer": "cpu"}, {"offload_optimizer": "cpu", "offload_parameters": "cpu"}
OFFLOADED = {
    "offload_brief": Case(dataclasses.replace(ACCUMULATED_FULL, steps=2), {"zero_stage": 3, **BOTH}),
    **{f"offload_{stage}_full": Case(ACCUMULATED_FULL, {"zero_stage": stage, **OPTIMIZER}) for stage in (1, 2, 3)},
    **{f"offload_{stage}_lora": Case(ACCUMULATED_LORA, {"zero_stage": stage, **OPTIMIZER}) for stage in (1, 2, 3)},
    "offload_both_full": Case(ACCUMULATED_FULL, {"zero_stage": 3, **BOTH}),
    "offload_both_lora": Case(ACCUMULATED_LORA, {"zero_stage": 3, **BOTH}, recompute=True),
    "offload_parameters_lora": Case(ACCUMULATED_LORA, {"zero_stage": 3, "offload_parameters": "cpu"}),
    **{
        f"offload_{stage}_bf16": Case(dataclasses.replace(FULL, bf16=True, steps=2), {"zero_stage": stage, **OPTIMIZER})
        for stage in (1, 2, 3)
    },
    "not_offloaded": Case(dataclasses.replace(FULL, steps=2), {"zero_stage": 3}),
    "recomputed_stage_3_full": Case(FULL, {"zero_stage": 3}, recompute=True),
}


def check_files(mesh, folder, name):
    """Equal bits from shares and from whole models that DeepSpeed partitions: parameters, gradients, ten steps, state."""
    base = folder / ("seeing" if name == "files_vision" else "text")
    (shared, shared_report), (whole, whole_report) = (trained_from(mesh, base, name, shares=shares) for shares in (True, False))
    report = {f"shared_{key}": value for key, value in shared_report.items()}
    report |= {f"whole_{key}": value for key, value in whole_report.items()}
    report["same"] = {key: same(shared[key], whole[key]) for key in shared}
    return report


def same(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(value, right[key]) for key, value in left.items())
    return left == right


def trained_from(mesh, base, name, *, shares):
    """(what came out of ten steps, how the engine was made)."""
    sections = FILES[name]
    parallel = {"expert_parallel_size": mesh.expert_parallel_size, "zero_stage": 3, **sections.get("parallel", {})}
    config = sft_run(base.parent, model={"path": str(base), "dtype": "float32"}, **{**sections, "parallel": parallel})
    torch.manual_seed(7)
    with contextlib.ExitStack() as stack:
        stack.enter_context(everything_partitioned())
        if not shares:
            stack.enter_context(mock.patch.object(preparing, "sharing_of", return_value=WHOLE))
            stack.enter_context(mock.patch.object(deepspeed_setup, "partition_parameters", return_value=None))
        model = preparing.prepare_model(config, mesh, "sha256:0").model.train()
        shard_experts(model, mesh)
        report = {"shares": sum(share_of(parameter) is not None for parameter in model.parameters())}
        whole = sum(parameter.numel() for parameter in model.parameters() if share_of(parameter) is None)
        with counted_broadcasts() as sizes:
            engine = make_engine(model, mesh, training=TRAINING, parallel=config.parallel)
    report |= {"broadcast": sum(sizes), "bytes_held_whole": 4 * whole, "tensors": len(list(model.parameters()))}
    report["partitioned"] = all(parameter.numel() == 0 for parameter in model.parameters())
    names, steps = [name for name, _ in model.named_parameters()], 2 if name == "files_brief" else STEPS
    found = {"start": {name: value.clone() for name, value in engine.full_parameters(names)}}
    records = list(run_steps(engine, model, mesh.world_size, range(2)))
    gradients = records[1].gradients  # of the first step those of A are zero, because B is
    records += run_steps(engine, model, mesh.world_size, range(2, steps), gradients=False)
    found |= {"losses": [record.loss for record in records], "norms": [record.norm for record in records]}
    found |= {"gradients": gradients, "state": stored_state(engine)}
    found["end"] = {name: value.clone() for name, value in engine.full_parameters(names)}
    report["learned"] = found["losses"][0] > 0 and not same(found["start"], found["end"])
    return found, report


@contextlib.contextmanager
def counted_broadcasts():
    """Bytes of every tensor that DeepSpeed broadcasts."""
    from deepspeed import comm

    sizes, broadcast = [], comm.broadcast

    def counting(tensor, *arguments, **options):
        sizes.append(tensor.numel() * tensor.element_size())
        return broadcast(tensor, *arguments, **options)

    with mock.patch.object(comm, "broadcast", counting):
        yield sizes


def check_offloaded(mesh, case, expected):
    """Parity with one process, where things lie, and state into a fresh engine."""
    with everything_partitioned() if case.section["zero_stage"] == 3 else contextlib.nullcontext():
        engine, model = engine_of(mesh, case)
        run = on_ranks(engine, model, case.training)
        report = where_things_lie(engine, model)
        stored = stored_state(engine)
        if not case.training.bf16:
            run.state = {name: {kind: value for kind, value in state.items() if kind != "step"} for name, state in stored.items()}
        report |= apart(run, expected)
        fresh, fresh_model = engine_of(mesh, case, steps=1)
        report["fresh_differs"] = not same_bits(stored_state(fresh), stored)
        fresh.import_state(reader(stored))
        report["same_bits"] = same_bits(stored_state(fresh), stored)
        after = [on_ranks(own, of, case.training, steps=1) for own, of in ((engine, model), (fresh, fresh_model))]
        report["same_step"] = after[0].losses == after[1].losses and after[0].norms == after[1].norms
        report["same_bits_later"] = same_bits(stored_state(engine), stored_state(fresh))
    return report


def engine_of(mesh, case, steps=0):
    """(engine, model), after some steps."""
    model = matrix_model(case.training)
    model.gradient_checkpointing = model.recompute_experts = case.recompute
    shard_experts(model, mesh)
    section = ParallelSection(expert_parallel_size=mesh.expert_parallel_size, **case.section)
    engine = make_engine(model, mesh, training=TRAINING, parallel=section)
    if steps:
        on_ranks(engine, model, case.training, steps=steps)
    return engine, model


def where_things_lie(engine, model):
    """Which of DeepSpeed's ways was taken. Without a GPU all memory is the CPU's, so what counts is what only offloading makes."""
    zero = engine._zero
    partitions = [parameter.ds_tensor for parameter in model.parameters() if hasattr(parameter, "ds_tensor")]
    trained = [parameter.ds_tensor for parameter in model.parameters() if hasattr(parameter, "ds_tensor") and parameter.requires_grad]
    pools = {pool.untyped_storage().data_ptr() for pool in getattr(zero, "param_groups_fp16_flat_cpu_memory", [])}
    flats = engine._state._flat_partitions()
    return {
        "class": type(zero).__name__,
        "optimizer": type(zero.optimizer).__name__,
        "gradients_wait": all(flat.grad is not None for flat in flats),
        "parameters_in_cpu_pool": bool(trained) and {part.untyped_storage().data_ptr() for part in trained} <= pools,
        "all_on_cpu": {part.device.type for part in [*partitions, *flats]} == {"cpu"},
        "moments": all(zero.optimizer.state[flat]["exp_avg"].device.type == flat.device.type == "cpu" for flat in flats),
    }


def main() -> None:
    folder, size, names = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    mesh = init_mesh(ParallelSection(expert_parallel_size=size, timeout_seconds=600))
    torch.set_num_threads(1)
    if mesh.is_main:
        for base, model in (("text", small_model()), ("seeing", small_multimodal())):
            vision = model.vision_config if isinstance(model, Mistral3ForConditionalGeneration) else None
            save_model(copy.deepcopy(model).state_dict(), folder / base, config=model.config, vision=vision)
    trainings = list(dict.fromkeys(OFFLOADED[name].training for name in names if name in OFFLOADED))
    expected = {training: one_process(training, mesh.world_size) for training in trainings}
    mesh.barrier()
    plain = Mesh(mesh.rank, mesh.world_size, 1, 0, mesh.local_rank, mesh.device)
    report = {}
    for name in names:
        begin = time.process_time()
        kind, _, suffix = name.partition(":")
        if kind in FILES:
            report[name] = check_files(plain if suffix == "ep1" else mesh, folder, kind)
        else:
            report[name] = check_offloaded(mesh, OFFLOADED[name], expected[OFFLOADED[name].training])
        report[name]["seconds"] = round(time.process_time() - begin, 2)
    (folder / f"{mesh.rank}.json").write_text(json.dumps(report))
    mesh.close()


if __name__ == "__main__":
    main()
