"""The release's headers, written without a weight: names, types, shapes and bytes are those of the public repositories.

Read back by ``read_safetensors_header`` and by safetensors itself from sparse files of the full size (up to 239 GB, a few MB on the disk).
"""

import json
import math
import re

import pytest
from safetensors import safe_open
from support.layouts import reference_pieces

from ms4_train.errors import WeightsError
from ms4_train.model import TextConfig, VisionConfig
from ms4_train.untrusted import read_safetensors_header, read_safetensors_metadata
from ms4_train.weights.convert.plan import ITEM_BYTES, plan_files
from ms4_train.weights.convert.tensor_file import create, is_as_planned
from ms4_train.weights.layouts.pieces import ModelConfig
from ms4_train.weights.layouts.tables import HfNames, Layout, LayoutTable, TensorSpec

RELEASE = ModelConfig(TextConfig(), VisionConfig())
PARAMETERS, SCALES = 119_401_298_944, 19_008  # spec section 1.3
FP8_VALUES = 36 * (28_049_408 + 129 * 25_165_824)  # attention, routed and shared experts of every layer
NATIVE_SCALES = 36 * 2 * (5 + 3 + 3 * 128)  # every expert's gate and up have scales of their own
KNOWN = {
    Layout.HF: (765, 2 * PARAMETERS),
    # A byte for each FP8 value, two for the others and for each scale.
    Layout.HF_FP8: (765 + 36 * 2 * (5 + 3 + 2), 2 * (PARAMETERS + SCALES) - FP8_VALUES),
    Layout.NATIVE: (None, 2 * PARAMETERS),
    Layout.NATIVE_FP8: (None, 2 * (PARAMETERS + NATIVE_SCALES) - FP8_VALUES),
    Layout.NVFP4: (56_313, 70_801_959_560),  # the real headers, spec section 3.4
}


@pytest.mark.parametrize("layout", Layout)
def test_headers_of_the_release(tmp_path, layout):
    table = LayoutTable(layout, RELEASE, HfNames.DISK)
    plan = plan_files(table)
    for file in plan.files:
        create(tmp_path / file.name, file)
        assert is_as_planned(tmp_path / file.name, file)
    stem = "model" if layout.is_hf else "consolidated"
    names = [f"{stem}-{number:05d}-of-{len(plan.files):05d}.safetensors" for number in range(1, len(plan.files) + 1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name for file in plan.files] == names
    found = {}
    for name in names:
        header = read_safetensors_header(tmp_path / name)
        assert (tmp_path / name).stat().st_size <= (5 << 30) + len(header) * 200
        found |= {tensor: (info.dtype, info.shape, info.stop - info.start) for tensor, info in header.items()}
        with safe_open(tmp_path / name, framework="pt") as opened:
            keys = list(opened.keys())
            assert set(keys) == set(header)
            for tensor in keys[::97]:
                part = opened.get_slice(tensor)
                assert (part.get_dtype(), tuple(part.get_shape())) == found[tensor][:2]
            assert opened.metadata() == ({"format": "pt"} if layout.is_hf else None)
    count, num_bytes = KNOWN[layout]
    assert sum(size for _, _, size in found.values()) == plan.tensor_bytes == num_bytes
    assert len(found) == (count or len(found))
    specs = table.tensors()
    assert {name: (spec.dtype, spec.shape) for name, spec in specs.items()} == {name: entry[:2] for name, entry in found.items()}
    if layout.encoding == "plain":
        assert sum(math.prod(shape) for _, shape, _ in found.values()) == PARAMETERS
    if layout is Layout.HF_FP8:
        scales = [math.prod(shape) for name, (_, shape, _) in found.items() if "scale" in name]
        assert sum(scales) == SCALES
        assert sum(math.prod(shape) for _, shape, _ in found.values()) == 119_401_317_952  # the hub's count
    index = plan.index()
    assert index["metadata"] == {"total_size": num_bytes}
    assert index["weight_map"].keys() == found.keys()
    assert plan.index_name == f"{stem}.safetensors.index.json"


@pytest.mark.parametrize("layout", Layout)
def test_every_byte_belongs_to_one_piece_or_scale_and_is_aligned(layout):
    text = TextConfig(
        vocab_size=96, hidden_size=64, num_hidden_layers=2, n_routed_experts=4, moe_intermediate_size=32, num_attention_heads=2,
        num_key_value_heads=2, q_lora_rank=32, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16,
    )  # fmt: skip
    table = LayoutTable(layout, ModelConfig(text, VisionConfig(32, 64, 2, 2, 16)), HfNames.DISK)
    plan = plan_files(table, 30_000)
    assert len(plan.files) > 5
    ranges = {number: [(0, len(file.header))] for number, file in enumerate(plan.files)}
    for piece in table.pieces().values():
        extent = plan.values(piece)
        ranges[extent.file].append((extent.start, extent.stop))
    covered = {table.place(piece).values for piece in table.pieces().values()}
    for name in plan.specs.keys() - covered:
        extent = plan.tensor(name)
        ranges[extent.file].append((extent.start, extent.stop))
    for number, file in enumerate(plan.files):
        ordered = sorted(ranges[number])
        assert [start for start, _ in ordered] == [0, *(stop for _, stop in ordered[:-1])]
        assert ordered[-1][1] == file.num_bytes
        assert all(start % ITEM_BYTES[plan.specs[name].dtype] == 0 for name, (start, _) in file.spans.items())


def test_a_matrix_and_its_scales_share_a_file():
    # An expert's matrix fills a file of 8 MiB to the byte, so that its scales would be the first of the next one.
    plan = plan_files(LayoutTable(Layout.NATIVE_FP8, RELEASE), 2048 * 4096)
    where = plan.index()["weight_map"]
    for name in where:
        if name.endswith("qscale_weight"):
            stem = name.removesuffix("qscale_weight")
            assert where[name] == where[f"{stem}weight"] == where[f"{stem}qscale_act"]


def test_scales_of_a_stack_lie_one_behind_the_other():
    table = LayoutTable(Layout.HF_FP8, RELEASE, HfNames.DISK)
    plan, pieces = plan_files(table), table.pieces()
    first, last = (table.place(pieces[f"model.layers.3.mlp.experts.{expert}.up_proj.weight"]) for expert in (0, 127))
    whole = plan.tensor("language_model.model.layers.3.mlp.experts.gate_up_proj_scale_inv")
    assert plan.scalar(first.weight_scale, first.expert).start == whole.start
    assert plan.scalar(last.weight_scale, last.expert).stop == whole.stop


def test_one_file_has_no_index_and_odd_sizes_are_sorted(tmp_path):
    specs = {"a": TensorSpec("U8", (3,)), "b": TensorSpec("F32", (2,)), "c": TensorSpec("BF16", (1,)), "d": TensorSpec("U8", (1,))}
    plan = plan_files(LayoutTable(Layout.NATIVE, ModelConfig(TextConfig())), specs=specs)
    assert [file.name for file in plan.files] == ["consolidated.safetensors"]
    assert plan.index_name is None
    assert list(plan.files[0].spans) == ["b", "c", "a", "d"]  # wide ones first, so that each lies at a multiple of its size
    create(tmp_path / "f.safetensors", plan.files[0])
    assert list(read_safetensors_header(tmp_path / "f.safetensors")) == ["b", "c", "a", "d"]
    assert read_safetensors_metadata(tmp_path / "f.safetensors") == {}
    assert len(plan.files[0].header) % 8 == 0
    assert re.fullmatch(rb"\{.*\} *", plan.files[0].header[8:])
    assert json.loads(plan.files[0].header[8:])["c"] == {"dtype": "BF16", "shape": [1], "data_offsets": [8, 10]}


def test_too_many_files_are_refused():
    with pytest.raises(WeightsError, match="files"):
        plan_files(LayoutTable(Layout.NATIVE, RELEASE), 1, specs={str(n): TensorSpec("U8", (1,)) for n in range(100_000)})


def test_a_large_tensor_has_a_file_of_its_own():
    sizes = [tensor.nbytes for tensor in reference_pieces().values()]
    specs = {str(number): TensorSpec("U8", (size,)) for number, size in enumerate(sizes)}
    plan = plan_files(LayoutTable(Layout.NATIVE, RELEASE), 10_000, specs=specs)
    for file in plan.files:
        total = sum(stop - start for start, stop in file.spans.values())
        assert total <= 10_000 or len(file.spans) == 1
