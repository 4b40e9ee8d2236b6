"""Adapters on frozen quantised weights over two ranks: experts and their codes spread, ZeRO 2, the losses of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import ATTENTION, SHARED, STACKS
from support.distributed import ROOT, run_ranks
from support.every_layout import write_layout
from support.sft_files import metrics, sft_run, write_rows

from ms4_recipes import sft
from ms4_train.config import to_yaml

ADAPTER = {"r": 4, "target_modules": ATTENTION + SHARED, "target_parameters": STACKS}


def configuration(folder: Path, output: str, base: str, dtype: str, ranks: int) -> Any:
    return sft_run(
        folder,
        output,
        model={"path": str(folder / base), "dtype": dtype},
        adapter=ADAPTER,
        # The same packed rows per step: one on each of two ranks, or two on one.
        training={"max_steps": 4, "per_device_train_batch_size": 2 // ranks, "lr_scheduler_type": "constant"},
        parallel={"expert_parallel_size": ranks},
    )


# DeepSpeed casts the modules of a bf16 model: codes and scales must come through that. fp32 says that nothing else differs.
@pytest.mark.parametrize(
    ("base", "dtype"),
    [("native-fp8", "bfloat16"), pytest.param("nvfp4", "float32", marks=pytest.mark.slow)],
    ids=["fp8-bf16", "nvfp4-fp32"],
)
def test_two_ranks_train_like_one(tmp_path: Path, base: str, dtype: str) -> None:
    write_rows(tmp_path / "a.jsonl", 60, seed=1)
    write_rows(tmp_path / "b.jsonl", 30, seed=2)
    write_layout(tmp_path, base)
    (tmp_path / "two.yaml").write_text(to_yaml(configuration(tmp_path, "two", base, dtype, ranks=2)))
    main, other = run_ranks(ROOT / "ms4_train" / "cli" / "main.py", "train", str(tmp_path / "two.yaml"))
    assert "kept quantised" in main
    assert "base weights" not in other
    sft.run(configuration(tmp_path, "one", base, dtype, ranks=1))
    one, two = (list(metrics(tmp_path, output).values()) for output in ("one", "two"))
    assert len(two) == 4
    # fp32: sums in another order. bf16: activations and gradients of 8 bits, summed in another order too, and Adam's first steps turn the
    # noise of a gradient near zero into a step of full length.
    assert two == pytest.approx(one, rel=1e-5 if dtype == "float32" else 2e-3)
    left, right = (load_file(tmp_path / output / "adapter" / "adapter_model.safetensors") for output in ("one", "two"))
    assert {name: tensor.shape for name, tensor in left.items()} == {name: tensor.shape for name, tensor in right.items()}
    if dtype == "float32":
        for name, tensor in left.items():
            assert relative_distance(right[name], tensor) < 1e-2, name  # the same of a few entries near zero


def relative_distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(found.double() - expected.double()) / torch.linalg.vector_norm(expected.double()))
