"""The planned model has the tensors of the one that a run reads: names, shapes, types, and what is trained."""

from __future__ import annotations

import pytest
from support import layouts

from ms4_recipes.prepare_model import prepare_model
from ms4_train.config.schema import SftRun
from ms4_train.parallel import Mesh
from ms4_train.planning import planned_model, read_base

FOLDERS = {
    "hf": layouts.hf_folder,
    "native": layouts.native_folder,
    "hf-fp8": layouts.hf_fp8_folder,
    "native-fp8": layouts.native_fp8_folder,
    "nvfp4": layouts.nvfp4_folder,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, write in FOLDERS.items():
        write(root / name)
    return root


def run_of(folder, ranks=1, **sections):
    model = {"path": str(folder), "dtype": "bfloat16", **sections.pop("model", {})}
    values = {"recipe": "sft", "output_dir": "x", "data": {"train": [{"path": "a"}]}, "parallel": {"expert_parallel_size": ranks}}
    return SftRun.model_validate({**values, "model": model, **sections})


def tensors(model):
    named = {name: (tuple(each.shape), each.dtype, each.requires_grad) for name, each in model.named_parameters()}
    return named | {name: (tuple(each.shape), each.dtype, False) for name, each in model.named_buffers()}


def assert_same(run, *, images=True):
    ranks = run.parallel.expert_parallel_size
    read = prepare_model(run, Mesh(0, ranks, expert_parallel_size=ranks), "base", images=images).model
    planned = planned_model(run, read_base(run.model.path), images=images)
    assert all(each.is_meta for each in planned.parameters())
    assert tensors(planned) == tensors(read)


ALL = {"r": 2, "preset": "all"}
CASES = [
    ("hf", 1, {}, True),
    ("hf", 1, {"training": {"train_router": True}}, False),
    ("native", 2, {"model": {"dtype": "float32", "vision": "skip"}}, False),
    ("native", 2, {"adapter": ALL}, True),
    ("hf-fp8", 1, {"adapter": {"r": 2, "preset": "attention+experts", "rank_pattern": {"down_proj": 4}}}, True),
    ("hf-fp8", 2, {}, True),
    ("native-fp8", 2, {"adapter": ALL, "training": {"recompute_experts": True}}, True),
    ("nvfp4", 2, {"adapter": {"r": 2, "modules_to_save": ["lm_head"], "target_parameters": ["mlp.gate.weight"]}}, True),
    ("nvfp4", 1, {"adapter": ALL, "model": {"dequantize": True}}, True),
]


@pytest.mark.parametrize(("layout", "ranks", "sections", "images"), CASES)
def test_it_is_the_model_that_is_read(folders, layout, ranks, sections, images):
    assert_same(run_of(folders / layout, ranks, **sections), images=images)


def test_control_a_tensor_that_is_held_otherwise_is_seen(folders):
    """Codes that are kept, and a share of the experts: neither is what a full fine-tune on one process reads."""
    base = read_base(folders / "native-fp8")
    full, spread, adapted = (run_of(folders / "native-fp8", ranks, **more) for ranks, more in ((1, {}), (2, {}), (1, {"adapter": ALL})))
    read = tensors(prepare_model(full, Mesh(), "base").model)
    assert read == tensors(planned_model(full, base))
    assert read != tensors(planned_model(spread, base))
    assert read != tensors(planned_model(adapted, base))
