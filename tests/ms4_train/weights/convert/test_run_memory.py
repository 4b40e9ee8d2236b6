"""Memory stays far below the largest tensor plus 1 GiB, and stacks of exactly 2^31 elements come out at the right places."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support.sparse_files import write_sparse

from ms4_train.model import TextConfig
from ms4_train.weights.convert import convert
from ms4_train.weights.layouts.hf_config import to_hf_config
from ms4_train.weights.layouts.native_config import to_params
from ms4_train.weights.layouts.pieces import ModelConfig
from ms4_train.weights.layouts.tables import Layout, LayoutTable

REPOSITORY = Path(__file__).resolve().parents[4]
SMALL = {
    "vocab_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 32, "kv_lora_rank": 32,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
}  # fmt: skip

MEASURED = """
import resource, sys
import torch
from ms4_train.weights.reading.checkpoint import open_checkpoint
from ms4_train.weights.convert import convert, run
def now():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
source, out, to, *scales = sys.argv[1:]
open_checkpoint(source).close()
torch.empty(1000).bfloat16().float().aminmax()
before = now()
options = {"scales": scales[0]} if scales else {}
convert(source, out, to=to, progress=None, threads=8, max_shard_bytes=1 << 30, **options)
# Not ru_maxrss: that of a child begins at its parent's.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024 - before)
"""


@pytest.fixture
def room(tmp_path: Path):
    """A folder that goes with the test: what lies in it is too large to be kept for a look."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def write_source(folder, layout, **sizes):
    config = ModelConfig(TextConfig(**SMALL, **sizes))
    table = LayoutTable(layout, config)
    specs = {name: (spec.dtype, spec.shape) for name, spec in table.tensors().items()}
    scalars = frozenset(name for name, spec in table.tensors().items() if spec.kind == "scalar")
    folder.mkdir()
    name = "model.safetensors" if layout.is_hf else "consolidated.safetensors"
    offsets = write_sparse(folder / name, specs, scalars)
    content = to_hf_config(config.text, dtype=torch.bfloat16) if layout.is_hf else to_params(config, layout)
    (folder / ("config.json" if layout.is_hf else "params.json")).write_text(json.dumps(content))
    return folder / name, offsets


def peak(source, out, to, *scales):
    """Bytes of resident memory that a conversion adds to those of a process that has torch and has opened the source."""
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'kernels'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURED, str(source), str(out), to, *map(str, scales)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
def test_memory_is_that_of_chunks_not_of_tensors(room):
    """A stack of 768 MB in BF16, 8 threads: copying, dequantising and quantising each take less than a quarter of it."""
    sizes = {"hidden_size": 2048, "moe_intermediate_size": 1536, "n_routed_experts": 64, "num_experts_per_tok": 2}
    write_source(room / "native-fp8", Layout.NATIVE_FP8, **sizes)
    found = {
        "dequantised": peak(room / "native-fp8", room / "hf", "hf"),
        "copied": peak(room / "hf", room / "native", "native"),
        "fused": peak(room / "native", room / "hf-fp8", "hf-fp8"),
    }
    with safe_open(next((room / "hf").glob("*.safetensors")), framework="pt") as file:
        assert file.get_slice("model.layers.0.mlp.experts.gate_up_proj").get_shape() == [64, 3072, 2048]
    assert max(found.values()) < 192 << 20, found
    # Negative control: the measure sees a tensor that is read whole.
    whole = MEASURED.replace("# Not", "keep = torch.ones(200 << 20, dtype=torch.uint8)\n# Not")
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'kernels'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", whole, str(room / "native"), str(room / "again"), "native"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 200 << 20


@pytest.mark.slow
def test_a_stack_of_two_to_the_31_elements_is_cut_at_the_right_bytes(room):
    """gate_up_proj [128, 4096, 4096] of the release's sizes, zeros but for marked rows: holes in the source, 6 GiB in the result."""
    sizes = {"hidden_size": 4096, "moe_intermediate_size": 2048, "n_routed_experts": 128, "num_experts_per_tok": 4}
    file, offsets = write_source(room / "hf", Layout.HF, **sizes)
    marks = {(0, 0): 1.0, (63, 2047): 2.0, (64, 2048): 3.0, (127, 2047): 4.0, (127, 2048): 5.0, (127, 4095): 6.0}
    stack = offsets["model.layers.0.mlp.experts.gate_up_proj"]
    with file.open("r+b") as handle:
        for (expert, row), value in marks.items():
            line = torch.full((4096,), value).bfloat16()
            os.pwrite(handle.fileno(), line.view(torch.uint8).numpy().tobytes(), stack + 2 * 4096 * (expert * 4096 + row))
    convert(room / "hf", room / "native", to="native", progress=None)
    found = {}
    for path in sorted((room / "native").glob("*.safetensors")):
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                if ".experts." in name:
                    tensor = opened.get_tensor(name)
                    rows = torch.nonzero(tensor.amax(dim=1)).flatten().tolist()
                    found |= {(name, row): tensor[row].unique().tolist() for row in rows}
    expected = {}
    for (expert, row), value in marks.items():
        matrix, at = ("w1", row) if row < 2048 else ("w3", row - 2048)
        expected[f"layers.0.experts.{expert}.{matrix}.weight", at] = [value]
    assert found == expected
    # And back: the same stack, byte for byte at the marks, with the same number of elements.
    (file.parent / "model.safetensors").unlink()
    convert(room / "native", room / "back", to="hf", progress=None)
    for path in (room / "back").glob("*.safetensors"):
        with safe_open(path, framework="pt") as opened:
            if "model.layers.0.mlp.experts.gate_up_proj" in opened.keys():  # noqa: SIM118
                part = opened.get_slice("model.layers.0.mlp.experts.gate_up_proj")
                assert part.get_shape() == [128, 4096, 4096]
                for (expert, row), value in marks.items():
                    assert part[expert, row].unique().tolist() == [value]
                assert part[127, 4094].unique().tolist() == [0.0]
                return
    raise AssertionError("the stack was not written")
