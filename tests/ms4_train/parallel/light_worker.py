"""One rank of the checks that need no DeepSpeed. ``run_ranks(light_worker.py, folder)`` writes folder/RANK.json."""

import copy
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from support.checkpoints import full_section
from support.parallel_runs import TRAINING, compare_engines, compare_records, randomise_adapters, relative, run_steps, small_model
from support.quantised_models import quantised_tiny
from torch.utils.checkpoint import checkpoint

from ms4_kernels.moe import experts
from ms4_train.adapters import attach
from ms4_train.config.schema import ParallelSection
from ms4_train.errors import ParallelError
from ms4_train.parallel import Mesh, init_mesh, make_engine, shard_experts
from ms4_train.parallel.exchange import ExpertExchange

EXPERTS, WIDTH, HIDDEN, TOP_K = 6, 5, 8, 3


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


def exchange_case(name, world_size):
    """Tokens of each rank and their experts: ([T, d] per rank, [T, K] ids, [T, K] weights)."""
    generator = torch.Generator().manual_seed(7)
    lengths = {"zero_tokens": [9, 0], "nobody": [0, 0]}.get(name, [4, 11])[:world_size]
    hidden, ids, weights = [], [], []
    for length in lengths:
        hidden.append(torch.randn(length, HIDDEN, generator=generator, dtype=torch.float64))
        choice = torch.rand(length, EXPERTS, generator=generator).argsort(1)[:, :TOP_K]
        ids.append(torch.full_like(choice, 5) if name == "one_expert" else choice)
        weights.append(torch.rand(length, TOP_K, generator=generator, dtype=torch.float64))
    return hidden, ids, weights


def exchanged(mesh, stacks, hidden_td, ids_tk, weights_tk, recompute):
    """Output and gradients [hidden, weights, gate_up, down] of this rank, with its experts only."""
    start, stop = mesh.expert_range(EXPERTS)
    leaves = [tensor.clone().requires_grad_() for tensor in (hidden_td, weights_tk, *(stack[start:stop] for stack in stacks))]
    exchange = ExpertExchange(mesh.expert_parallel_group, EXPERTS)

    def forward(hidden_td, weights_tk, gate_up_eid, down_edn):
        def compute(hidden_rd, ids_r1, weights_r1):
            return experts(hidden_rd, gate_up_eid, down_edn, ids_r1, weights_r1, backend="reference")

        return exchange(hidden_td, ids_tk, weights_tk, compute)

    out_td = checkpoint(forward, *leaves, use_reentrant=False) if recompute else forward(*leaves)
    out_td.backward(torch.linspace(-1, 1, out_td.numel(), dtype=out_td.dtype).view_as(out_td))
    return [out_td.detach(), *(leaf.grad for leaf in leaves)]


def expected_result(mesh, stacks, hidden, ids, weights):
    """The same from one call of the operation over the tokens of all ranks, with all experts."""
    leaves = [tensor.clone().requires_grad_() for tensor in (torch.cat(hidden), torch.cat(weights), *stacks)]
    out_td = experts(leaves[0], leaves[2], leaves[3], torch.cat(ids), leaves[1], backend="reference")
    parts = out_td.split([len(part) for part in hidden])
    torch.autograd.backward(parts, [torch.linspace(-1, 1, part.numel(), dtype=part.dtype).view_as(part) for part in parts])
    offset = sum(len(part) for part in hidden[: mesh.rank])
    own = slice(offset, offset + len(hidden[mesh.rank]))
    local = slice(*mesh.expert_range(EXPERTS))
    gradients = [leaf.grad for leaf in leaves]
    return [out_td[own].detach(), gradients[0][own], gradients[1][own], gradients[2][local], gradients[3][local]]


def check_exchange(mesh):
    generator = torch.Generator().manual_seed(1)
    stacks = [torch.randn(EXPERTS, *shape, generator=generator, dtype=torch.float64) for shape in ((2 * WIDTH, HIDDEN), (HIDDEN, WIDTH))]
    report = {}
    for name in ("random", "one_expert", "zero_tokens", "nobody", "recomputed"):
        hidden, ids, weights = exchange_case(name, mesh.world_size)
        own = hidden[mesh.rank], ids[mesh.rank], weights[mesh.rank]
        results = exchanged(mesh, stacks, *own, recompute=name == "recomputed")
        expected = expected_result(mesh, stacks, hidden, ids, weights)
        assert [r.shape for r in results] == [e.shape for e in expected]
        report[name] = max(relative(r, e) if r.numel() else 0.0 for r, e in zip(results, expected, strict=True))
    hidden, ids, weights = exchange_case("random", mesh.world_size)
    own = hidden[mesh.rank], ids[mesh.rank], weights[mesh.rank]
    report["rolled_experts"] = relative(
        exchanged(mesh, [stack.roll(1, 0) for stack in stacks], *own, recompute=False)[0],
        expected_result(mesh, stacks, hidden, ids, weights)[0],
    )
    narrow = [stack.to(torch.bfloat16) for stack in stacks]
    first, second = (exchanged(mesh, narrow, own[0].to(torch.bfloat16), own[1], own[2].float(), recompute=False) for _ in range(2))
    report["types"] = [str(tensor.dtype) for tensor in first]
    report["repeatable"] = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    return report


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
    return {**compare_records(records, expected), **compare_engines(engine, reference), "engine": type(engine).__name__}


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
        "exchange": check_exchange(mesh),
        "sharding": check_sharding(mesh),
        "stage_0": check_stage_0(mesh),
        "quantised": check_quantised(mesh),
        "deepspeed_imported": "deepspeed" in sys.modules,
    }
    (Path(sys.argv[1]) / f"{mesh.rank}.json").write_text(json.dumps(report))
    mesh.close()


if __name__ == "__main__":
    main()
