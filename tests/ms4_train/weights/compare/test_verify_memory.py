"""Two layers of the release's own widths, compared in two layouts: what memory that takes (files with holes, a process of its own)."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.sparse_files import write_sparse

from ms4_train.model import TextConfig, VisionConfig
from ms4_train.weights.layouts.hf_config import to_hf_model_config
from ms4_train.weights.layouts.native_config import to_params
from ms4_train.weights.layouts.pieces import ModelConfig
from ms4_train.weights.layouts.tables import HfNames, Layout, LayoutTable

ROOT = Path(__file__).resolve().parents[4]
CONFIG = ModelConfig(dataclasses.replace(TextConfig(), num_hidden_layers=2), VisionConfig())
LIMIT = 1 << 30
"""Above what importing takes: a layer's attention, its shared expert and two routed ones are 0.1 GB each in fp32, chunks of head and
vision some tens of MB; 0.6 GB were seen. The two layers alone would be 26 GB in fp32 for each side."""

CODE = """
import json, sys
import torch
from ms4_train.weights import open_checkpoint
from ms4_train.weights.compare.verify import compare_logits, fixed_sequences

def peak():  # not ru_maxrss: that of a child begins at its parent's
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

before = peak()
source, result = (open_checkpoint(folder) for folder in sys.argv[1:3])
found = compare_logits(source, result, fixed_sequences(131072))
print(json.dumps({"grown": peak() - before, "passed": found.passed, "tolerance": found.expectation.tolerance, "vision": found.num_weights}))
"""


def write(folder, layout):
    folder.mkdir()
    table = LayoutTable(layout, CONFIG, HfNames.DISK)
    specs = {name: (spec.dtype, spec.shape) for name, spec in table.tensors().items()}
    ones = frozenset(name for name, spec in table.tensors().items() if spec.kind == "scalar")
    write_sparse(folder / ("model.safetensors" if layout.is_hf else "consolidated.safetensors"), specs, ones)
    if layout.is_hf:
        (folder / "config.json").write_text(json.dumps(to_hf_model_config(CONFIG, dtype=torch.bfloat16)))
    else:
        (folder / "params.json").write_text(json.dumps(to_params(CONFIG, layout)))


@pytest.mark.slow
def test_memory_is_that_of_a_few_matrices(tmp_path):
    write(tmp_path / "fp8", Layout.NATIVE_FP8)
    write(tmp_path / "hf", Layout.HF)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels"))), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CODE, str(tmp_path / "fp8"), str(tmp_path / "hf")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=900)
    found = json.loads(done.stdout)
    assert (found["passed"], found["tolerance"], found["vision"] > 200) == (True, 0.0, True)
    assert found["grown"] < LIMIT, found
