"""Checkpoints of the release's real sizes: whole headers and configurations, holes for the weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from support.sparse_files import write_sparse_shards

from ms4_train.model import TextConfig, VisionConfig
from ms4_train.weights.layouts.hf_config import to_hf_model_config
from ms4_train.weights.layouts.native_config import to_params
from ms4_train.weights.layouts.pieces import ModelConfig
from ms4_train.weights.layouts.tables import HfNames, Layout, LayoutTable

RELEASE = ModelConfig(TextConfig(), VisionConfig())


def write_release(folder: Path, layout: Layout, config: ModelConfig = RELEASE) -> None:
    """Write 13 shards in ``layout`` that hardly occupy the disk, with scales of one."""
    table = LayoutTable(layout, config, HfNames.DISK)
    specs = {name: (spec.dtype, spec.shape) for name, spec in table.tensors().items()}
    scalars = frozenset(name for name, spec in table.tensors().items() if spec.kind == "scalar")
    write_sparse_shards(folder, "model" if layout.is_hf else "consolidated", specs, 13, scalars)
    if layout.is_hf:
        content = to_hf_model_config(config, dtype=torch.bfloat16, fp8=layout is Layout.HF_FP8)
        (folder / "config.json").write_text(json.dumps(content))
    else:
        (folder / "params.json").write_text(json.dumps(to_params(config, layout)))
