"""Items cover the target exactly once, and do no more than they must: bytes that agree are copied, scales that agree are not fused."""

import collections

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import layouts

from ms4_train.weights.convert.items import known_scalars, make_items, source_span
from ms4_train.weights.convert.plan import plan_files
from ms4_train.weights.convert.target import make_target
from ms4_train.weights.layouts.tables import Layout
from ms4_train.weights.reading.checkpoint import open_checkpoint

FACTORIES = {
    Layout.HF: layouts.hf_folder,
    Layout.NATIVE: layouts.native_folder,
    Layout.HF_FP8: layouts.hf_fp8_folder,
    Layout.NATIVE_FP8: layouts.native_fp8_folder,
    Layout.NVFP4: layouts.nvfp4_folder,
}


def planned(folder, to, *, scales=None, weight_scales="kept", dtype=None):
    source = open_checkpoint(folder)
    target = make_target(source, to, scales=scales, weight_scales=weight_scales, dtype=dtype)
    plan = plan_files(target.table, 100_000, specs=target.specs)
    return source, target, plan, make_items(source, target, plan)


def actions(items):
    return collections.Counter(item.action for item in items)


@pytest.mark.parametrize("weight_scales", ["kept", "fitted"])
@pytest.mark.parametrize("to", [Layout.HF, Layout.NATIVE, Layout.HF_FP8, Layout.NATIVE_FP8])
@pytest.mark.parametrize("layout", Layout)
def test_every_byte_is_written_once(tmp_path, layout, to, weight_scales):
    FACTORIES[layout](tmp_path / "source")
    options = {}
    if to.encoding == "fp8":
        options = {"weight_scales": weight_scales}
        if layout.encoding != "fp8":
            layouts.native_fp8_folder(tmp_path / "scales")
            options["scales"] = tmp_path / "scales"
    elif weight_scales == "fitted":
        return
    _, target, plan, items = planned(tmp_path / "source", to, **options)
    ranges = collections.defaultdict(list)
    for number, file in enumerate(plan.files):
        ranges[number].append((0, len(file.header)))
    for item in items:
        for extent in item.extents:
            ranges[extent.file].append((extent.start, extent.stop))
    for name, values in known_scalars(target, plan):
        extent = plan.tensor(name)
        assert values.nbytes == extent.num_bytes
        ranges[extent.file].append((extent.start, extent.stop))
    for number, file in enumerate(plan.files):
        ordered = sorted(ranges[number])
        assert [start for start, _ in ordered] == [0, *(stop for _, stop in ordered[:-1])]
        assert ordered[-1][1] == file.num_bytes
    assert [item.number for item in items] == list(range(len(items)))


def test_only_vision_rows_are_computed_between_plain_layouts(tmp_path):
    layouts.hf_folder(tmp_path / "hf")
    _, _, _, items = planned(tmp_path / "hf", Layout.NATIVE)
    cast = [item.pieces[0].name for item in items if item.action == "cast"]
    assert cast == [f"vision_tower.transformer.layers.{layer}.attention.{letter}_proj.weight" for layer in (0, 1) for letter in "qk"]
    assert actions(items)["copy"] == len(items) - 4
    _, _, _, items = planned(tmp_path / "hf", Layout.HF)
    assert actions(items) == {"copy": len(items)}


def test_native_to_native_copies_permuted_rows_whole(tmp_path):
    layouts.native_folder(tmp_path / "native")
    source, _, _, items = planned(tmp_path / "native", Layout.NATIVE)
    assert actions(items) == {"copy": len(items)}
    name = "vision_tower.transformer.layers.0.attention.q_proj.weight"
    stored, start, stop = source_span(source, source.pieces()[name])
    assert stored == "vision_encoder.transformer.layers.0.attention.wq.weight"
    assert stop - start == 32 * 32 * 2


def test_codes_under_one_scale_are_copied_and_others_fused(tmp_path):
    layouts.native_fp8_folder(tmp_path / "fp8")
    file = tmp_path / "fp8" / "consolidated.safetensors"
    tensors = load_file(file)
    tensors["layers.0.experts.1.w3.qscale_weight"] = tensors["layers.0.experts.1.w1.qscale_weight"].clone()
    save_file(tensors, file)
    _, _, _, items = planned(tmp_path / "fp8", Layout.HF_FP8)
    assert actions(items)["fuse"] == 2 * 8 - 1
    fused = [item for item in items if item.action == "fuse"]
    assert all([piece.matrix for piece in item.pieces] == ["gate_proj", "up_proj"] for item in fused)
    assert all(item.values[0].stop == item.values[1].start for item in fused)
    _, _, _, items = planned(tmp_path / "fp8", Layout.HF_FP8, weight_scales="fitted")
    assert actions(items)["fuse"] == 16
    assert all(item.scale is not None for item in items if item.action in ("fuse", "quantise"))


def test_a_wider_type_is_cast(tmp_path):
    layouts.hf_folder(tmp_path / "hf")
    _, _, _, items = planned(tmp_path / "hf", Layout.NATIVE, dtype=torch.float32)
    assert actions(items) == {"cast": len(items)}
