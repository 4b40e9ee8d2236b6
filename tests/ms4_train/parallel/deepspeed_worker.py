"""One rank of the DeepSpeed checks. ``run_ranks(deepspeed_worker.py, folder, names...)`` writes folder/RANK.json.

Every check compares with ``LocalEngine`` in this same process, which takes the rows of all ranks; the run state of two checks is left for
one process to resume from.
"""

import copy
import json
import math
import sys
import time
from pathlib import Path

import torch
from matrix_worker import run_matrix
from support.parallel_matrix import CONTROLS, CORE
from support.parallel_runs import (
    TRAINING,
    compare_engines,
    compare_records,
    everything_partitioned,
    gathered_state,
    loss_sum,
    randomise_adapters,
    reader,
    rows_of,
    run_steps,
    same_bits,
    small_model,
    small_multimodal,
    stored_state,
)
from support.quantised_models import quantised_tiny
from support.run_state import saver

from ms4_kernels.native import linear as native_linear
from ms4_train.checkpoint import find_saved_run
from ms4_train.config.schema import AdapterSection, ParallelSection
from ms4_train.errors import TrainingError
from ms4_train.parallel import Mesh, deepspeed_setup, init_mesh, make_engine, shard_experts

RANK = {"r": 3, "lora_alpha": 6.0}  # the usual alpha = 2r; a much larger one lets Adam turn rounding into visible differences
ATTENTION = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def build(mesh, *, stage=2, dtype=torch.float32, adapter=None, checkpointing=False, quantised=False, vision=False):
    """(engine on all ranks, its model, engine of one process, its model), from equal weights."""
    if vision:
        model = small_multimodal()
    else:
        model = quantised_tiny("fp8", small_model().config, dtype=dtype).train() if quantised else small_model(dtype)
    if adapter is not None:
        from ms4_train.adapters import attach

        attach(model, adapter)
        randomise_adapters(model)
    model.gradient_checkpointing = checkpointing
    reference_model = copy.deepcopy(model)
    shard_experts(model, mesh)
    if quantised and mesh.rank == 1:  # the engine must make replicas equal
        model.model.layers[0].mlp.shared_experts.up_proj.codes.zero_()
    section = ParallelSection(expert_parallel_size=mesh.expert_parallel_size, zero_stage=stage)
    engine = make_engine(model, mesh, training=TRAINING, parallel=section)
    reference = make_engine(reference_model, Mesh(), training=TRAINING, parallel=section)
    return engine, model, reference, reference_model


def compared(mesh, steps, gradients=True, **options):
    """Train both and compare; also gives the engine and its model back."""
    engine, model, reference, reference_model = build(mesh, **options)
    records = list(run_steps(engine, model, mesh.world_size, range(steps), gradients=gradients))
    expected = list(run_steps(reference, reference_model, mesh.world_size, range(steps), gradients=gradients))
    report = {**compare_records(records, expected), **compare_engines(engine, reference)}
    report |= {"engine": type(engine).__name__, "losses": [record.loss for record in expected], "parameters": len(records[0].gradients)}
    return report, engine, model


def save_state(folder, engine):
    """A checkpoint of run state, for one process to go on from."""
    with saver(folder, engine) as made:
        made.save(5, {})


def check_matrix(mesh, folder):
    """Ten steps under each ZeRO stage against one process of plain torch."""
    return run_matrix(mesh, folder, [*CORE, *CONTROLS])


def check_full(mesh, folder):
    """Five steps, state for one process and for another ZeRO stage, two steps more."""
    report, engine, model = compared(mesh, 5)
    save_state(folder / "full", engine)
    stored = stored_state(engine)
    with everything_partitioned():
        other, _, _, _ = build(mesh, stage=3)
        report["stage_3_before"] = same_bits(stored_state(other), stored)
        find_saved_run(folder / "full", "auto", mesh).restore(other, seed=0)
        report["stage_3_after"] = same_bits(stored_state(other), stored)
    report["continued"] = [record.loss for record in run_steps(engine, model, mesh.world_size, range(5, 7), gradients=False)]
    return report


def check_lora(mesh, folder):
    report, engine, model = compared(mesh, 5, adapter=AdapterSection(**RANK, target_modules=ATTENTION, target_parameters=EXPERTS))
    save_state(folder / "lora", engine)
    report["continued"] = [record.loss for record in run_steps(engine, model, mesh.world_size, range(5, 7), gradients=False)]
    return report


def check_frozen_experts(mesh, folder):
    """Only attention is trained: no group of experts exists, yet frozen experts must stay different on each rank."""
    return compared(mesh, 2, adapter=AdapterSection(**RANK, target_modules=ATTENTION))[0]


def check_checkpointing(mesh, folder):
    return compared(mesh, 2, checkpointing=True)[0]


def check_stage_1(mesh, folder):
    return with_resume(mesh, *compared(mesh, 2, stage=1), stage=1)


def check_stage_3(mesh, folder):
    with everything_partitioned():
        report, engine, model = compared(mesh, 2, stage=3)
        report["partitioned"] = all(parameter.numel() == 0 for parameter in model.parameters())
        return with_resume(mesh, report, engine, model, stage=3)


def check_stage_3_lora(mesh, folder):
    adapter = AdapterSection(**RANK, target_modules=ATTENTION, target_parameters=EXPERTS)
    with everything_partitioned():
        return with_resume(mesh, *compared(mesh, 2, stage=3, adapter=adapter), stage=3, adapter=adapter)


def check_stage_3_targets(mesh, folder):
    """Embedding, head, routers, a norm trained whole: base weights and adapters are gathered where they are read."""
    targets = {"target_modules": ["lm_head", "embed_tokens"], "target_parameters": ["mlp.gate.weight"], "modules_to_save": ["model.norm"]}
    adapter = AdapterSection(**RANK, **targets)
    with everything_partitioned():
        return compared(mesh, 2, stage=3, adapter=adapter)[0]


def check_quantised(mesh, folder):
    return compared(mesh, 2, quantised=True, adapter=AdapterSection(**RANK, target_modules=ATTENTION, target_parameters=EXPERTS))[0]


def check_stage_3_quantised(mesh, folder):
    with everything_partitioned():
        adapter = AdapterSection(**RANK, target_modules=ATTENTION, target_parameters=EXPERTS)
        return compared(mesh, 2, stage=3, quantised=True, adapter=adapter)[0]


def check_vision(mesh, folder):
    """One rank of two sees an image; both must exchange gradients of the tower all the same."""
    return compared(mesh, 2, vision=True)[0]


def check_stage_3_vision(mesh, folder):
    with everything_partitioned():
        return compared(mesh, 2, stage=3, vision=True, checkpointing=True)[0]


def check_stage_3_frozen_vision(mesh, folder):
    """Frozen weights are gathered too, by all ranks or none."""
    adapter = AdapterSection(**RANK, target_modules=ATTENTION, target_parameters=EXPERTS)
    with everything_partitioned():
        return compared(mesh, 2, stage=3, vision=True, adapter=adapter)[0]


def check_bf16(mesh, folder):
    report, engine, model = compared(mesh, 2, gradients=False, dtype=torch.bfloat16)
    return with_resume(mesh, report, engine, model, dtype=torch.bfloat16)


def check_bf16_stage_1(mesh, folder):
    report, engine, model = compared(mesh, 2, gradients=False, dtype=torch.bfloat16, stage=1)
    return with_resume(mesh, report, engine, model, dtype=torch.bfloat16, stage=1)


def check_data_parallel(mesh, folder):
    """The same ranks without expert parallelism; sharded and replicated results must not depend on it."""
    plain = Mesh(mesh.rank, mesh.world_size, 1, 0, mesh.local_rank, mesh.device)
    return compared(plain, 2)[0]


def check_without_marks(mesh, folder):
    """Negative control: DeepSpeed left alone with our experts."""
    mark, deepspeed_setup._mark_experts = deepspeed_setup._mark_experts, lambda *_args, **_options: None
    groups, deepspeed_setup.optimizer_groups = deepspeed_setup.optimizer_groups, lambda trained, _name: [_unmarked(trained)]
    try:
        return compared(mesh, 2)[0]
    finally:
        deepspeed_setup._mark_experts, deepspeed_setup.optimizer_groups = mark, groups


def _unmarked(trained):
    return {"params": [item.parameter for item in trained], "decays": True}


def check_resume(mesh, folder):
    return with_resume(mesh, *compared(mesh, 2))


def with_resume(mesh, report, engine, model, **options):
    """State into a fresh engine with other weights: the same bits back, and the same steps afterwards."""
    stored = stored_state(engine)
    other, other_model, _, _ = build(mesh, **options)
    fresh = stored_state(other)
    report["fresh_steps"] = sorted({int(state["step"]) for state in fresh.values()})
    list(run_steps(other, other_model, mesh.world_size, range(20, 21), gradients=False))
    other.import_state(reader(stored))
    report["same_bits"] = same_bits(stored_state(other), stored)
    report["fresh_differs"] = not same_bits(fresh, stored)
    names = [name for name, _ in model.named_parameters()]
    whole = {name: value.clone() for name, value in engine.full_parameters(names)}
    report["same_weights"] = all(torch.equal(value, whole[name]) for name, value in other.full_parameters(names))
    first = [record.loss for record in run_steps(engine, model, mesh.world_size, range(2, 4), gradients=False)]
    second = [record.loss for record in run_steps(other, other_model, mesh.world_size, range(2, 4), gradients=False)]
    report["same_losses"] = first == second
    report["same_bits_later"] = same_bits(stored_state(engine), stored_state(other))
    return report


def check_odd_sizes(mesh, folder):
    """Parameters of 35, 7, 7 and 1 values over the ranks, in ZeRO 1, 2 and 3: some ranks hold nothing of some, or nothing at all."""
    report = {}
    plain = Mesh(mesh.rank, mesh.world_size, 1, 0, mesh.local_rank, mesh.device)

    def odd_engine(seed, stage):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1))
        engine = make_engine(model, plain, training=TRAINING, parallel=ParallelSection(zero_stage=stage))
        engine.backward(model(torch.full((1, 5), 1.0 + mesh.rank)).sum(), is_last_micro_batch=True)
        engine.step(0.1, 1.0)
        return engine

    with everything_partitioned():
        for stage in (1, 2, 3):
            engine, other = odd_engine(0, stage), odd_engine(1, stage)
            stored, once = gathered_state(engine)
            different = not same_bits(gathered_state(other)[0], stored)
            other.import_state(reader(stored))
            report[f"stage {stage}"] = once and different and same_bits(gathered_state(other)[0], stored)
            report[f"pieces {stage}"] = len(list(engine.export_state()))
    return report


def check_not_finite(mesh, folder):
    report = {}
    cases = {"fp32": (2, torch.float32, math.inf), "bf16": (2, torch.bfloat16, math.inf), "stage 3": (3, torch.bfloat16, math.nan)}
    for name, (stage, dtype, value) in cases.items():
        engine, model, _, _ = build(mesh, dtype=dtype, stage=stage)
        before = stored_state(engine)
        loss = loss_sum(model, rows_of(0, 0, mesh.rank)) * (value if mesh.rank == 1 else 1.0)
        engine.backward(loss, is_last_micro_batch=True)
        try:
            engine.step(0.1, 1.0)
        except TrainingError as error:
            report[name] = {"error": str(error), "unchanged": same_bits(before, stored_state(engine))}
    return report


def check_environment(mesh, folder):
    """What importing and starting DeepSpeed left behind."""
    from deepspeed import comm

    build(mesh)
    return {"shm_op": repr(comm.comm.cdb.shm_comm_op), "initialized": comm.is_initialized()}


def main() -> None:
    folder, size, names = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    mesh = init_mesh(ParallelSection(expert_parallel_size=size, timeout_seconds=60))
    # These matrices are too small for the compiled products to pay; under DeepSpeed's hooks and gathering they are what is to be proven.
    native_linear._LEAST_ROWS, native_linear._LEAST_WORK = 1, 0
    report, seconds = {}, {}
    for name in names:
        begin = time.process_time()
        report[name] = globals()[f"check_{name}"](mesh, folder)
        seconds[name] = round(time.process_time() - begin, 2)
    report["seconds"] = seconds
    (folder / f"{mesh.rank}.json").write_text(json.dumps(report))
    mesh.close()


if __name__ == "__main__":
    main()
