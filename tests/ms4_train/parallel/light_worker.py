"""One rank of the checks that need no DeepSpeed. ``run_ranks(light_worker.py, folder)`` writes folder/RANK.json."""

import copy
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from support.checkpoints import full_section
from support.exchange_checks import check_block, check_operation
from support.parallel_runs import TRAINING, compare_engines, compare_records, randomise_adapters, run_steps, small_model
from support.quantised_models import quantised_tiny

from ms4_train.adapters import attach
from ms4_train.config.schema import ParallelSection
from ms4_train.errors import ParallelError
from ms4_train.parallel import Mesh, init_mesh, make_engine, shard_experts, traffic


def check_mesh(mesh):
    tensor = torch.tensor([mesh.rank, 1])
    return {
        "rank": mesh.rank,
        "float_sum": mesh.all_reduce_sum(mesh.rank + 0.5),
        "large_sum": mesh.all_reduce_sum(16777216.0 if mesh.rank else 1.0),
        "tensor_sum": mesh.all_reduce_sum(tensor).tolist(),
        "own_tensor_after": tensor.tolist(),
        "gathered": mesh.all_gather_json({"rank": mesh.rank, "text": "ü" * 1000 * mesh.rank}),
        "expert_parallel_ranks": dist.get_process_group_ranks(mesh.expert_parallel_group),
        "expert_data_parallel_ranks": dist.get_process_group_ranks(mesh.expert_data_parallel_group),
    }


def check_section(mesh):
    """The mesh is asked for again by ranks of which one lays it out in another way."""
    try:
        init_mesh(ParallelSection(expert_parallel_size=2 - mesh.rank, zero_stage=1, timeout_seconds=60))
    except ParallelError as error:
        return {"said": str(error), "on_all_ranks": error.on_all_ranks, "left": not dist.is_initialized()}


def check_traffic(mesh):
    counted = traffic.Traffic(traffic.ExpertBytes(dispatch=mesh.rank + 1, combine=10), traffic.ExpertBytes(combine=20))
    return traffic.metrics(counted, mesh)


def check_sharding(mesh):
    model = small_model()
    full = copy.deepcopy(model)
    shard_experts(model, mesh)
    start, stop = mesh.expert_range(model.config.n_routed_experts)
    module, whole = model.model.layers[1].mlp.experts, full.model.layers[1].mlp.experts
    report = {
        "local_experts": module.num_local_experts,
        "own_slice": torch.equal(module.gate_up_proj, whole.gate_up_proj[start:stop]),
        "storage_bytes": module.gate_up_proj.untyped_storage().nbytes(),
        "full_bytes": whole.gate_up_proj.untyped_storage().nbytes(),
    }
    shard_experts(model, mesh)
    report["local_experts_again"] = module.num_local_experts
    module.down_proj.data = module.down_proj.data[:1]
    try:
        shard_experts(model, mesh)
    except ParallelError as error:
        report["error"] = str(error)
    return report


def check_stage_0(mesh):
    section = ParallelSection(expert_parallel_size=2, zero_stage=0)
    model = small_model()
    reference_model = copy.deepcopy(model)
    if mesh.rank == 1:  # the engine must make replicas equal
        model.model.norm.weight.data.zero_()
    shard_experts(model, mesh)
    engine = make_engine(model, mesh, training=TRAINING, parallel=section)
    reference = make_engine(reference_model, Mesh(), training=TRAINING, parallel=section)
    records = list(run_steps(engine, model, mesh.world_size, range(3), gradients=False))
    expected = list(run_steps(reference, reference_model, mesh.world_size, range(3), gradients=False))
    written, trained = (sum(piece.stop - piece.start for piece in each.export_state()) for each in (engine, reference))
    result = {**compare_records(records, expected), **compare_engines(engine, reference)}
    return {**result, "engine": type(engine).__name__, "written": written / trained}


def check_quantised(mesh):
    """An adapter trained over frozen FP8 weights, experts spread, against one process; rank 1 starts with damaged replicas."""
    section = ParallelSection(expert_parallel_size=2, zero_stage=0)
    report = {}
    for damage in ("mended", "left"):
        model = quantised_tiny("fp8", small_model().config)
        torch.manual_seed(4)
        attach(model, full_section())
        randomise_adapters(model)
        reference_model = copy.deepcopy(model)
        linear, stack = model.model.layers[0].self_attn.o_proj.base_layer, model.model.layers[1].mlp.experts.down_proj
        shard_experts(model, mesh)
        shard_experts(model, mesh)  # again: nothing is left to do
        if mesh.rank == 1 and damage == "mended":
            linear.codes.zero_()
        engine = make_engine(model, mesh, training=TRAINING, parallel=section)
        if mesh.rank == 1 and damage == "left":
            linear.codes.zero_()
        reference = make_engine(reference_model, Mesh(), training=TRAINING, parallel=section)
        records = list(run_steps(engine, model, mesh.world_size, range(2), gradients=False))
        expected = list(run_steps(reference, reference_model, mesh.world_size, range(2), gradients=False))
        report[damage] = max(compare_records(records, expected).values())
        report["local_experts"] = stack.shape[0]
    return report


def main() -> None:
    mesh = init_mesh(ParallelSection(expert_parallel_size=2, timeout_seconds=60))
    report = {
        "mesh": check_mesh(mesh),
        "exchange": {"operation": check_operation(mesh), "block": check_block(mesh)},
        "traffic": check_traffic(mesh),
        "sharding": check_sharding(mesh),
        "stage_0": check_stage_0(mesh),
        "quantised": check_quantised(mesh),
        "deepspeed_imported": "deepspeed" in sys.modules,
        "section": check_section(mesh),  # the last one: it ends the group
    }
    (Path(sys.argv[1]) / f"{mesh.rank}.json").write_text(json.dumps(report))
    mesh.close()


if __name__ == "__main__":
    main()
