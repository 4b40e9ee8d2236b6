"""Every configuration of the real model: its processes fit, its numbers are those of the plan, and the GPU that it names has enough."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from support.release import write_release

from ms4_train.config import load_run
from ms4_train.config.mesh import check_mesh, planned_processes
from ms4_train.model import TextConfig, VisionConfig
from ms4_train.planning import Base, plan_memory, read_base
from ms4_train.weights.layouts.pieces import ModelConfig
from ms4_train.weights.layouts.tables import Layout

FOLDER = Path(__file__).parents[3] / "configs" / "train" / "small4"
FILES = sorted(FOLDER.glob("*.yaml"))
RELEASE = ModelConfig(TextConfig(), VisionConfig())
PROCESSES = {"1gpu": 1, "2gpu": 2, "4gpu": 4, "8gpu": 8, "2node": 16, "4node": 32, "8node": 64}
DEVICES = {"80 GB (H100)": 85.0e9, "141 GB (H200)": 150.0e9}
"""What torch calls the total memory of these devices, in bytes, rounded down."""
QUICK = {"1gpu_lora_experts", "2node_full_offload", "8gpu_lora_vision", "4node_full"}
"""Planned in the quick tier; each takes a second or two."""


@cache
def loaded(path):
    return load_run(path)


def layout_of(run):
    return Layout.NVFP4 if run.model.path.endswith("NVFP4") else Layout.NATIVE_FP8


def comment_table(path):
    """Label -> bytes of the table in a file's comments."""
    lines = path.read_text().splitlines()
    found = (re.match(r"#   (\S.*\S) +(\d+\.\d\d)$", line) for line in lines)
    return {match.group(1): float(match.group(2)) * 1e9 for match in found if match}


def test_every_size_and_kind_that_fits_is_there():
    kinds = ("lora_attention", "lora_experts", "lora_vision")
    names = {f"{size}_{kind}" for size in PROCESSES for kind in kinds}
    names |= {"2node_full", "2node_full_offload", "4node_full", "8node_full"}
    assert {path.stem for path in FILES} == names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_processes_fit_and_its_comments_start_them(path):
    run, text = loaded(path), path.read_text()
    size, _, kind = path.stem.partition("_")
    processes = PROCESSES[size]
    assert planned_processes(run.parallel, 1) == processes
    check_mesh(run.parallel, processes, 128)
    assert run.parallel.expert_parallel_size == min(processes, 8)  # tokens stay in their node
    assert run.output_dir == f"runs/small4/{path.stem.replace('_', '-')}"
    presets = {"lora_attention": "attention", "lora_experts": "attention+experts", "lora_vision": "all"}
    assert (run.adapter.preset if run.adapter else None) == presets.get(kind)
    start = f"#   ms4 train configs/train/small4/{path.name}" + (f" --nproc {processes}" if processes > 1 else "") + "\n"
    if processes > 8:
        start = f"#   sbatch --nodes {processes // 8} configs/launch/slurm.sbatch configs/train/small4/{path.name}\n"
    assert start in text
    assert (
        f"#   ms4 pull mistralai/Mistral-Small-4-119B-2603{'-NVFP4' if layout_of(run) is Layout.NVFP4 else ''} {run.model.path}\n" in text
    )


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else [pytest.mark.slow]) for path in FILES]
)
def test_its_numbers_are_the_plan_and_fit_the_device_that_it_names(path):
    run = loaded(path)
    plan = plan_memory(run, Base(RELEASE, layout_of(run)), PROCESSES[path.stem.partition("_")[0]])
    table = comment_table(path)
    assert list(table) == [label for label, _ in plan.rows()]
    for label, count in plan.rows():
        assert table[label] == pytest.approx(count, rel=0.05, abs=1e7), label
    (device,) = (size for name, size in DEVICES.items() if name in path.read_text().splitlines()[0])
    assert plan.device <= 0.95 * device
    if "offload" in path.stem:
        assert 8 * plan.host < 2e12  # of one node


def test_control_a_table_of_another_file_is_seen():
    ours, other = (comment_table(FOLDER / f"{name}.yaml") for name in ("8gpu_lora_experts", "8gpu_lora_vision"))
    assert ours.keys() == other.keys()
    assert any(ours[label] != pytest.approx(other[label], rel=0.05, abs=1e7) for label in ours)


def test_what_is_said_not_to_fit_does_not():
    """A full fine-tune on one node, whose host is too small to take the optimizer; and on two of 80 GB without offloading."""
    sizes = ["parallel.data_parallel_size=8"]
    kept, moved = (load_run(FOLDER / f"2node_full{end}.yaml", sizes) for end in ("", "_offload"))
    plans = [plan_memory(run, Base(RELEASE, Layout.NATIVE_FP8), 8) for run in (kept, moved)]
    assert plans[0].device > 1.3 * 191e9
    assert plans[1].device < DEVICES["80 GB (H100)"]
    assert 8 * plans[1].host > 2e12
    two_nodes = comment_table(FOLDER / "2node_full.yaml")["together on the device, at most"]
    assert two_nodes > DEVICES["80 GB (H100)"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout.NATIVE_FP8, Layout.NVFP4])
def test_the_release_is_known_by_its_headers(tmp_path, layout):
    write_release(tmp_path, layout)
    base = read_base(tmp_path)
    assert base.layout is layout
    plans = [plan_memory(loaded(FOLDER / "8gpu_lora_vision.yaml"), each, 8) for each in (base, Base(RELEASE, layout))]
    assert plans[0] == plans[1]
