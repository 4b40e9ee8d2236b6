"""Conversions between all layouts, tensor for tensor, against the factories of ``support.layouts``, which know nothing of ``ms4_train``.

Plain layouts and kept scales are exact, so nothing here has a tolerance. NVFP4's oracle is compressed-tensors' decoder; the lossy fusion
of HF-FP8 is transformers' published formula.
"""

import json
import subprocess

import pytest
import torch
from support import layouts
from support.conversion import different, stored_tensors

from ms4_train.weights.convert import convert
from ms4_train.weights.reading.checkpoint import open_checkpoint


def go(source, out, to, **options):
    return convert(source, out, to=to, progress=None, **options)


@pytest.mark.parametrize("shard_bytes", [60_000, 5 << 30])
@pytest.mark.parametrize("vision", [True, False])
def test_plain_layouts_become_each_other_and_come_back(tmp_path, vision, shard_bytes):
    style = "disk" if vision else "text"
    hf = layouts.hf_folder(tmp_path / "hf", vision=vision, style=style, shards=2)
    native = layouts.native_folder(tmp_path / "native", vision=vision)
    go(tmp_path / "hf", tmp_path / "to native", "native", max_shard_bytes=shard_bytes)
    assert different(stored_tensors(tmp_path / "to native"), native) == []
    go(tmp_path / "to native", tmp_path / "hf again", "hf", max_shard_bytes=shard_bytes)
    assert different(stored_tensors(tmp_path / "hf again"), hf) == []
    go(tmp_path / "native", tmp_path / "to hf", "hf", max_shard_bytes=shard_bytes)
    assert different(stored_tensors(tmp_path / "to hf"), hf) == []
    go(tmp_path / "to hf", tmp_path / "native again", "native", max_shard_bytes=shard_bytes)
    assert different(stored_tensors(tmp_path / "native again"), native) == []
    count = len(list((tmp_path / "native again").glob("*.safetensors")))
    assert count == 1 if shard_bytes > 1 << 30 else count > 5


def test_the_vision_rows_are_really_permuted(tmp_path):
    """Negative control: without the permutation the comparisons above would fail, because the rows differ."""
    hf, native = layouts.hf_folder(tmp_path / "hf"), layouts.native_folder(tmp_path / "native")
    pair = ("vision_tower.transformer.layers.0.attention.q_proj.weight", "vision_encoder.transformer.layers.0.attention.wq.weight")
    assert not torch.equal(hf[pair[0]], native[pair[1]])


@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("between", ["hf", "native"])
def test_fp8_dequantised_and_quantised_again_with_kept_scales_is_what_it_was(tmp_path, between, scale_dtype):
    native = layouts.native_fp8_folder(tmp_path / "fp8", scale_dtype=scale_dtype)
    report = go(tmp_path / "fp8", tmp_path / "plain", between)
    assert report.has_sidecar
    go(tmp_path / "plain", tmp_path / "other plain", "native" if between == "hf" else "hf")
    report = go(tmp_path / "other plain", tmp_path / "again", "native-fp8")
    assert different(stored_tensors(tmp_path / "again"), native) == []
    assert report.saturated == {}
    meant = layouts.fp8_reference_pieces(layouts.reference_pieces(), scale_dtype=scale_dtype)
    expected = layouts.hf_tensors(meant) if between == "hf" else layouts.native_tensors(meant)
    assert different(stored_tensors(tmp_path / "plain"), expected) == []


def test_fusion_for_hf_fp8_is_transformers_formula(tmp_path):
    layouts.native_fp8_folder(tmp_path / "native")
    fused = layouts.hf_fp8_folder(tmp_path / "hf")
    go(tmp_path / "native", tmp_path / "fused", "hf-fp8", max_shard_bytes=50_000)
    assert different(stored_tensors(tmp_path / "fused"), fused) == []
    # From dequantised weights: gate and up are quantised apart, then fused, with the same result.
    go(tmp_path / "native", tmp_path / "plain", "hf")
    go(tmp_path / "plain", tmp_path / "fused too", "hf-fp8")
    assert different(stored_tensors(tmp_path / "fused too"), fused) == []
    # There and back: the fused files' own scale and codes.
    go(tmp_path / "hf", tmp_path / "plain of fused", "native")
    go(tmp_path / "plain of fused", tmp_path / "fused again", "hf-fp8")
    assert different(stored_tensors(tmp_path / "fused again"), fused) == []


def test_hf_fp8_to_native_gives_both_halves_the_fused_scale_and_means_the_same(tmp_path):
    fused = layouts.hf_fp8_folder(tmp_path / "hf")
    go(tmp_path / "hf", tmp_path / "native", "native-fp8")
    found = stored_tensors(tmp_path / "native")
    scale = fused["language_model.model.layers.0.mlp.experts.gate_up_proj_scale_inv"]
    for letter in ("w1", "w3"):
        assert all(found[f"layers.0.experts.{expert}.{letter}.qscale_weight"] == scale[expert, 0, 0] for expert in range(8))
    go(tmp_path / "native", tmp_path / "plain", "native")
    expected = layouts.native_tensors(layouts.hf_fp8_reference_pieces(layouts.reference_pieces()))
    assert different(stored_tensors(tmp_path / "plain"), expected) == []
    go(tmp_path / "native", tmp_path / "back", "hf-fp8")
    assert different(stored_tensors(tmp_path / "back"), fused) == []


@pytest.mark.parametrize("to", ["hf", "native"])
def test_nvfp4_decodes_to_what_compressed_tensors_decodes(tmp_path, to):
    layouts.nvfp4_folder(tmp_path / "nvfp4", shards=3)
    report = go(tmp_path / "nvfp4", tmp_path / "out", to)
    meant = layouts.nvfp4_reference_pieces(layouts.reference_pieces())
    expected = layouts.hf_tensors(meant) if to == "hf" else layouts.native_tensors(meant)
    assert different(stored_tensors(tmp_path / "out"), expected) == []
    assert not report.has_sidecar


@pytest.mark.parametrize(("to", "factory"), [("native-fp8", layouts.native_fp8_folder), ("hf-fp8", layouts.hf_fp8_folder)])
def test_fitted_scales_are_the_largest_magnitude_over_448(tmp_path, to, factory):
    """The factories fit their weight scales so; activation scales come from the FP8 folder that is named."""
    layouts.hf_folder(tmp_path / "plain")
    expected = factory(tmp_path / "fp8")
    layouts.native_fp8_folder(tmp_path / "scales")
    report = go(tmp_path / "plain", tmp_path / "out", to, scales=tmp_path / "scales", weight_scales="fitted")
    assert different(stored_tensors(tmp_path / "out"), expected) == []
    assert report.saturated == {}


def test_native_fp8_from_nvfp4(tmp_path):
    """NVFP4 keeps attention in BF16, and has no FP8 scales of its own: fitted ones, and another folder's for activations."""
    layouts.nvfp4_folder(tmp_path / "nvfp4")
    layouts.native_fp8_folder(tmp_path / "fp8")
    go(tmp_path / "nvfp4", tmp_path / "out", "native-fp8", scales=tmp_path / "fp8", weight_scales="fitted")
    expected = layouts.native_fp8_tensors(layouts.nvfp4_reference_pieces(layouts.reference_pieces()))
    found = stored_tensors(tmp_path / "out")
    # Decoded in fp32 here and in bf16 there, so a fitted scale may differ by its last bit, and codes next to a tie with it.
    assert set(found) == set(expected)
    plain = [name for name in found if found[name].dtype == torch.bfloat16 and "qscale_weight" not in name]
    assert all(torch.equal(found[name], expected[name]) for name in plain)
    name = "layers.1.experts.3.w2."
    one, other = (tensors[name + "weight"].float() * tensors[name + "qscale_weight"].float() for tensors in (found, expected))
    assert torch.allclose(one, other, rtol=2**-3, atol=0)  # neighbouring e4m3 codes are up to an eighth apart


@pytest.mark.parametrize("dtype", ["float32", torch.bfloat16])
def test_a_dtype_is_for_everything_that_is_not_quantised(tmp_path, dtype):
    hf = layouts.hf_folder(tmp_path / "hf", dtype=torch.float32)
    report = go(tmp_path / "hf", tmp_path / "out", "hf", dtype=dtype)
    wanted = torch.float32 if dtype == "float32" else torch.bfloat16
    assert different(stored_tensors(report.folder), {name: tensor.to(wanted) for name, tensor in hf.items()}) == []
    assert json.loads((report.folder / "config.json").read_text())["dtype"] == str(wanted).removeprefix("torch.")


def test_vision_keeps_its_type_when_none_is_asked_for(tmp_path):
    pieces = layouts.reference_pieces()
    mixed = {name: tensor.float() if name.startswith(("vision", "multi")) else tensor for name, tensor in pieces.items()}
    layouts.native_folder(tmp_path / "native", pieces=mixed)
    go(tmp_path / "native", tmp_path / "hf", "hf")
    assert different(stored_tensors(tmp_path / "hf"), layouts.hf_tensors(mixed)) == []
    go(tmp_path / "hf", tmp_path / "back", "native")
    assert different(stored_tensors(tmp_path / "back"), layouts.native_tensors(mixed)) == []


@pytest.mark.parametrize("source", ["hf", "native", "hf-fp8", "native-fp8", "nvfp4"])
@pytest.mark.parametrize("to", ["hf", "native", "hf-fp8", "native-fp8"])
def test_every_pair_gives_a_checkpoint_that_opens_and_sums_that_sha256sum_confirms(tmp_path, source, to):
    make = {
        "hf": layouts.hf_folder,
        "native": layouts.native_folder,
        "hf-fp8": layouts.hf_fp8_folder,
        "native-fp8": layouts.native_fp8_folder,
        "nvfp4": layouts.nvfp4_folder,
    }[source]
    make(tmp_path / "source")
    options = {}
    if to.endswith("fp8") and not source.endswith("fp8"):
        layouts.native_fp8_folder(tmp_path / "scales")
        options = {"scales": tmp_path / "scales"}
    go(tmp_path / "source", tmp_path / "out", to, max_shard_bytes=90_000, **options)
    checkpoint = open_checkpoint(tmp_path / "out")
    assert checkpoint.layout == to
    assert checkpoint.config.vision == open_checkpoint(tmp_path / "source").config.vision
    assert checkpoint.config.text.softmax_scale == "plain"
    checked = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "out", capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
    listed = {line.split("  ", 1)[1] for line in (tmp_path / "out" / "SHA256SUMS").read_text().splitlines()}
    assert listed == {path.name for path in (tmp_path / "out").iterdir()} - {"SHA256SUMS"}


def test_transformers_computes_from_the_hf_files_what_it_computes_from_the_factorys(tmp_path):
    """Logits of transformers over our files, which say plain, and over the release's own configuration with the plain scale patched in."""
    import transformers.models.mistral4.modeling_mistral4 as modeling
    from transformers import Mistral3ForConditionalGeneration

    layouts.native_folder(tmp_path / "native")
    layouts.hf_folder(tmp_path / "hf")
    go(tmp_path / "native", tmp_path / "ours", "hf")
    ids = torch.arange(5, 45).reshape(2, 20)

    def logits(folder):
        model = Mistral3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            return model(input_ids=ids).logits

    ours = logits(tmp_path / "ours")
    scaled = logits(tmp_path / "hf")
    original = modeling.yarn_apply_mscale
    modeling.yarn_apply_mscale = lambda rope, scale: scale
    try:
        plain = logits(tmp_path / "hf")
    finally:
        modeling.yarn_apply_mscale = original
    assert (ours - plain).abs().max() < 1e-5  # the same arithmetic; the scale itself may differ in its last bit
    assert (ours - scaled).abs().max() > 1e-4  # negative control: the other scale is visible here
