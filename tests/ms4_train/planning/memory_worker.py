"""One of two ranks: build engines over a small model, and write how many bytes of tensors each holds, and when.

``python memory_worker.py OUT.json``; tensors are found by the garbage collector and counted by their memory, each once.
"""

from __future__ import annotations

import gc
import json
import sys
import warnings
from pathlib import Path

import torch
from support.models import tiny_config, tiny_model

from ms4_train.adapters import attach
from ms4_train.config.schema import AdapterSection, ParallelSection, TrainingSection
from ms4_train.model import SequenceLayout
from ms4_train.parallel import init_mesh, make_engine, shard_experts

SIZES = {"vocab_size": 2048, "hidden_size": 256, "moe_intermediate_size": 192, "q_lora_rank": 128, "kv_lora_rank": 64}
CASES = [
    {"stage": 0, "dtype": "bfloat16"},
    {"stage": 1, "dtype": "bfloat16"},
    {"stage": 2, "dtype": "bfloat16"},
    {"stage": 3, "dtype": "bfloat16"},
    {"stage": 1, "dtype": "float32"},
    {"stage": 2, "dtype": "float32"},
    {"stage": 3, "dtype": "float32"},
    {"stage": 2, "dtype": "bfloat16", "adapter": {"r": 4, "preset": "attention+experts"}},
    {"stage": 3, "dtype": "bfloat16", "adapter": {"r": 4, "preset": "attention+experts"}},
]


def memories() -> dict[int, tuple[int, str]]:
    """Address -> (bytes, type) of the memory of every tensor that Python knows."""
    found: dict[int, tuple[int, str]] = {}
    for each in gc.get_objects():
        if isinstance(each, torch.Tensor) and each.device.type == "cpu":
            memory = each.untyped_storage()
            if memory.nbytes():
                found.setdefault(memory.data_ptr(), (memory.nbytes(), str(each.dtype).removeprefix("torch.")))
    return found


class Count:
    """Bytes of new tensors by type, at named moments; the most of each name is kept."""

    def __init__(self) -> None:
        gc.collect()
        self.before = set(memories())
        self.most: dict[str, dict[str, int]] = {}

    def __call__(self, moment: str) -> None:
        """Count now."""
        gc.collect()
        now: dict[str, int] = {"all": 0}
        for address, (size, dtype) in memories().items():
            if address not in self.before:
                now["all"] += size
                now[dtype] = now.get(dtype, 0) + size
        if now["all"] > self.most.get(moment, {"all": -1})["all"]:
            self.most[moment] = now


def measure(case: dict, mesh) -> dict:
    """Two micro batches and a step of one engine."""
    count = Count()
    model = tiny_model(tiny_config(**SIZES), dtype=getattr(torch, case["dtype"])).train()
    if "adapter" in case:
        attach(model, AdapterSection.model_validate(case["adapter"]))
    shard_experts(model, mesh)
    parallel = ParallelSection(expert_parallel_size=2, zero_stage=case["stage"])
    engine = make_engine(model, mesh, training=TrainingSection(), parallel=parallel)
    count("ready")

    def watch(_module, _inputs, output):
        if output.requires_grad:
            output.register_hook(lambda _gradient: count("backward"))  # all gradients but the embedding's are there

    model.model.embed_tokens.register_forward_hook(watch)
    plain_step = torch.optim.AdamW.step

    def step(self, *arguments, **options):
        count("update")
        return plain_step(self, *arguments, **options)

    torch.optim.AdamW.step = step
    try:
        ids_t = torch.arange(64)
        for is_last in (False, True):
            hidden_td = model(ids_t, SequenceLayout.from_lengths((64,)))
            loss = model.lm_head(hidden_td).float().logsumexp(-1).sum() / 128
            engine.backward(loss, is_last_micro_batch=is_last)
            del hidden_td, loss
            count("backward")
        engine.step(1e-3, 1.0)
    finally:
        torch.optim.AdamW.step = plain_step
    count("after")
    return count.most


def main() -> None:
    """Measure every case; rank 0 writes."""
    warnings.simplefilter("ignore")
    mesh = init_mesh(ParallelSection(expert_parallel_size=2, timeout_seconds=120))
    found = [measure(case, mesh) for case in CASES]
    if mesh.is_main:
        Path(sys.argv[1]).write_text(json.dumps(found))
    mesh.close()


if __name__ == "__main__":
    main()
