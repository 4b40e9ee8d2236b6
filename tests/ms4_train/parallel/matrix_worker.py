"""One rank of the parity matrix. ``run_ranks(matrix_worker.py, folder, expert-parallel size, cases...)`` writes folder/RANK.json.

The main rank computes what the one process does, once per training, before DeepSpeed is imported; the others read it from the folder.
"""

import contextlib
import dataclasses
import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from support.parallel_matrix import CASES, CONTROLS, FULL, Case, Recorded, apart, matrix_model, on_ranks, one_process
from support.parallel_runs import TRAINING, everything_partitioned, stored_state

from ms4_train.config.schema import ParallelSection
from ms4_train.parallel import init_mesh, make_engine, shard_experts
from ms4_train.parallel.parameters import expert_parameters

CONTROL = Case(dataclasses.replace(FULL, steps=1), {"zero_stage": 2})


def run_matrix(mesh, folder, names):
    """{case or control: what ``apart`` found on this rank}."""
    trainings = list(dict.fromkeys(CASES[name].training for name in names if name in CASES)) or [FULL]
    files = {training: folder / f"expected-{index}.safetensors" for index, training in enumerate(trainings)}
    if mesh.is_main:
        for training, path in files.items():
            save_file(one_process(training, mesh.world_size).tensors(), path)
    mesh.barrier()
    expected = {training: Recorded.of(load_file(path)) for training, path in files.items()}
    report = {}
    for name in names:
        begin = time.process_time()
        case = CASES.get(name, CONTROL)
        run = run_case(mesh, case, control=name if name in CONTROLS else None)
        report[name] = apart(run, expected[case.training if name in CASES else FULL])
        report[name]["seconds"] = round(time.process_time() - begin, 2)
    return report


def run_case(mesh, case, control=None):
    """The run of one case on these ranks, or of a control."""
    model = matrix_model(case.training)
    model.gradient_checkpointing = model.recompute_experts = case.recompute
    shard_experts(model, mesh)
    if control == "permuted_experts" and mesh.rank == 1:
        for stack in expert_parameters(model).values():
            stack.data = stack.data.roll(1, 0)
    section = ParallelSection(expert_parallel_size=mesh.expert_parallel_size, **case.section)
    with everything_partitioned() if section.zero_stage == 3 else contextlib.nullcontext():
        engine = make_engine(model, mesh, training=TRAINING, parallel=section)
        run = on_ranks(engine, model, case.training, share=0.0 if control == "dropped_rank" and mesh.rank == 1 else 1.0)
        if not case.training.bf16 and control is None:
            run.state = {
                name: {kind: value for kind, value in state.items() if kind != "step"} for name, state in stored_state(engine).items()
            }
    return run


def main() -> None:
    folder, size, names = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    mesh = init_mesh(ParallelSection(expert_parallel_size=size, timeout_seconds=300))
    torch.set_num_threads(1)
    report = run_matrix(mesh, folder, names)
    (folder / f"{mesh.rank}.json").write_text(json.dumps(report))
    mesh.close()


if __name__ == "__main__":
    main()
