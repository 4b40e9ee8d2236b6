"""Peak memory of one rank that starts a ZeRO 3 run from files. ``run_ranks(zero3_memory_worker.py, folder, cases...)`` writes
folder/RANK.json. A case is LAYOUT-TRAINING-RANKS OF EXPERTS, as ``hf-lora-ep2``; ``ep2z2`` is under ZeRO 2, where a rank holds all but the
experts of others; with ``-whole`` behind it no rank knows of shares.

The files are sparse: zeros that take no disk, but whole pages of memory once they are read.
"""

import contextlib
import ctypes
import gc
import json
import sys
from pathlib import Path
from unittest import mock

import torch
from support.checkpoints import ATTENTION
from support.models import tiny_config
from support.sft_files import sft_run
from support.sparse_files import write_sparse_shards

from ms4_recipes import prepare_model as preparing
from ms4_train.config.schema import ParallelSection
from ms4_train.parallel import Mesh, deepspeed_setup, init_mesh, make_engine, shard_experts
from ms4_train.weights.layouts.hf_config import to_hf_model_config
from ms4_train.weights.layouts.native_config import to_params
from ms4_train.weights.layouts.pieces import ModelConfig
from ms4_train.weights.layouts.tables import Layout, LayoutTable
from ms4_train.weights.reading.shares import WHOLE, held_bytes

WIDE = ModelConfig(
    tiny_config(
        vocab_size=32768, hidden_size=1024, moe_intermediate_size=512, num_hidden_layers=3, n_routed_experts=16, num_experts_per_tok=2
    )
)
"""293 MB in bf16; embedding and head are the largest tensors, 67 MB each."""
ADAPTER = {"r": 4, "target_modules": ATTENTION}


def write_wide(folder, layout):
    """A checkpoint of zeros in three shards."""
    folder.mkdir()
    specs = LayoutTable(layout, WIDE).tensors()
    shapes = {name: (spec.dtype, spec.shape) for name, spec in specs.items()}
    scalars = frozenset(name for name, spec in specs.items() if spec.kind == "scalar")
    write_sparse_shards(folder, "model" if layout.is_hf else "consolidated", shapes, 3, scalars)
    if layout.is_hf:
        content = to_hf_model_config(WIDE, dtype=torch.bfloat16, fp8=layout is Layout.HF_FP8)
        (folder / "config.json").write_text(json.dumps(content))
    else:
        (folder / "params.json").write_text(json.dumps(to_params(WIDE, layout)))


def memory(key):
    """``VmRSS``, or ``VmHWM``, its peak, of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def measured(mesh, folder, name):
    """Bytes above what the process held before: at the peak of reading, of partitioning, and of the whole start."""
    is_whole = name.endswith("-whole")
    layout, training, place = name.removesuffix("-whole").rsplit("-", 2)
    experts, _, stage = place.partition("z")
    zero_stage = int(stage or 3)
    if experts == "ep1":
        mesh = Mesh(mesh.rank, mesh.world_size, 1, 0, mesh.local_rank, mesh.device)
    parallel = {"expert_parallel_size": mesh.expert_parallel_size, "zero_stage": zero_stage}
    sections = {"adapter": ADAPTER, "model": {"dequantize": True}} if training == "lora" else {}
    model = {"path": str(folder / layout), "dtype": "bfloat16", **sections.pop("model", {})}
    config = sft_run(folder, model=model, parallel=parallel, training={"gradient_checkpointing": False}, **sections)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, found = memory("VmRSS"), {}

    def note(key):
        found[key] = memory("VmHWM") - before

    with contextlib.ExitStack() as stack:
        partition = deepspeed_setup.partition_parameters
        if is_whole:
            stack.enter_context(mock.patch.object(preparing, "sharing_of", return_value=WHOLE))
            stack.enter_context(mock.patch.object(deepspeed_setup, "partition_parameters", return_value=None))
        else:
            stack.enter_context(
                mock.patch.object(deepspeed_setup, "partition_parameters", lambda *given: (partition(*given), note("partitioned")))
            )
        network = preparing.prepare_model(config, mesh, "sha256:0", images=False).model
        note("read")
        shard_experts(network, mesh)
        found |= {"held": sum(map(held_bytes, network.parameters())), "values": sum(p.numel() for p in network.parameters())}
        found["largest"] = max(parameter.numel() * 2 for parameter in network.parameters())
        found["share"] = share_bytes(network, mesh, zero_stage)
        make_engine(network, mesh, training=config.training, parallel=config.parallel)
        note("started")
    found["resident"] = memory("VmRSS") - before
    return found


def share_bytes(model, mesh, zero_stage):
    """What one rank must hold of bf16 parameters: a part of each, of experts that of the ranks that hold the same; before ZeRO 3 all."""
    if zero_stage < 3:
        return sum(2 * parameter.numel() for parameter in model.parameters())
    total = 0
    for name, parameter in model.named_parameters():
        is_expert = ".experts." in name
        total += 2 * -(-parameter.numel() // (mesh.expert_data_parallel_size if is_expert else mesh.world_size))
    return total


def main() -> None:
    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    mesh = init_mesh(ParallelSection(expert_parallel_size=2, timeout_seconds=600))
    torch.set_num_threads(1)
    if mesh.is_main:
        for layout in Layout:
            write_wide(folder / layout, layout)
    deepspeed_setup.import_deepspeed(mesh)
    mesh.barrier()
    measured(mesh, folder, "hf-lora-ep1")  # pays for imports and for what libraries keep
    report = {name: measured(mesh, folder, name) for name in cases}
    (folder / f"{mesh.rank}.json").write_text(json.dumps(report))
    mesh.close()


if __name__ == "__main__":
    main()
