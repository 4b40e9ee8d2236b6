"""Every way in which files can be damaged, or disagree with each other or with the configuration, is refused with file and tensor named."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support import layouts
from support.checkpoints import edit_json, rewrite, write_safetensors

from ms4_train.errors import MS4Error, UntrustedInputError
from ms4_train.weights.reading.checkpoint import open_checkpoint
from ms4_train.weights.reading.summary import inspect_checkpoint

HF_Q_A = "language_model.model.layers.0.self_attn.q_a_proj.weight"
TEXT_Q_A = HF_Q_A.removeprefix("language_model.")
HF_STACK = "language_model.model.layers.0.mlp.experts.gate_up_proj"
Q_A = "layers.0.attention.wq_a.weight"
W1 = "layers.1.experts.3.w1"
FOLDERS = {
    "hf": layouts.hf_folder,
    "native": layouts.native_folder,
    "hf-fp8": layouts.hf_fp8_folder,
    "native-fp8": layouts.native_fp8_folder,
    "nvfp4": layouts.nvfp4_folder,
}


def refused(folder, **options):
    with pytest.raises(MS4Error) as caught:
        open_checkpoint(folder, **options)
    assert caught.value.fix
    assert caught.value.file
    return caught.value


def drop(name):
    return lambda tensors: tensors.pop(name)


def rename(old, new):
    return lambda tensors: tensors.update({new: tensors.pop(old)})


def put(name, value):
    return lambda tensors: tensors.update({name: value})


def cast(name, dtype):
    return lambda tensors: tensors.update({name: tensors[name].to(dtype)})


def transpose(name):
    return lambda tensors: tensors.update({name: tensors[name].transpose(-1, -2)})


def fill(name, value):
    return lambda tensors: tensors.update({name: torch.full_like(tensors[name], value)})


def fill_one(name, index, value):
    def change(tensors):
        tensors[name].view(-1)[index] = value

    return change


def drop_vision(tensors):
    for name in [name for name in tensors if name.startswith(("vision", "patch", "pre_mm"))]:
        del tensors[name]


# (layout, change, tensor named, words of the message)
FAULTS = {
    "missing": ("hf", drop(HF_Q_A), HF_Q_A, ["missing"]),
    "missing stack": ("hf", drop(HF_STACK), HF_STACK, ["missing"]),
    "renamed": ("hf", rename(HF_Q_A, HF_Q_A.replace("q_a", "qa")), HF_Q_A, ["missing", "Nearest", "qa_proj"]),
    "renamed native": ("native", rename(Q_A, "layers.0.attention.wqa.weight"), Q_A, ["Nearest", "layers.0.attention.wqa.weight"]),
    "unexpected": ("native", put("layers.0.attention.wq.weight", torch.ones(2)), "layers.0.attention.wq.weight", ["not a weight", Q_A]),
    "misshapen": ("hf", transpose(HF_Q_A), HF_Q_A, ["[64, 32]", "[32, 64]", "config.json"]),
    "misshapen stack": ("hf", put(HF_STACK, torch.ones(7, 64, 64)), HF_STACK, ["[7, 64, 64]", "[8, 64, 64]"]),
    "misshapen native": ("native", put(f"{W1}.weight", torch.ones(32, 65)), f"{W1}.weight", ["[32, 65]", "params.json"]),
    "integers": ("native", cast(Q_A, torch.uint8), Q_A, ["U8", "BF16"]),
    "other prefix too": ("hf", put(TEXT_Q_A, torch.ones(32, 64)), TEXT_Q_A, ["twice", HF_Q_A]),
    "other family too": ("native", put("model.norm.weight", torch.ones(64)), "model.norm.weight", ["twice", "norm.weight"]),
    "native in hf": ("hf", put("output.weight", torch.ones(512, 64)), "output.weight", ["twice", "lm_head"]),
    "partial experts": ("native", drop(f"{W1}.weight"), f"{W1}.weight", ["24 expert matrices of layer 1, 1 are missing"]),
    "fp8 in a plain one": ("hf", cast(HF_Q_A, torch.float8_e4m3fn), HF_Q_A, ["F8_E4M3", "declares no quantisation", "config.json"]),
    "scale in a plain one": ("hf", put(f"{HF_Q_A}_scale_inv", torch.ones(())), f"{HF_Q_A}_scale_inv", ["quantised", "declares no"]),
    "plain in fp8": ("native-fp8", cast(Q_A, torch.bfloat16), Q_A, ["BF16", "F8_E4M3"]),
    "missing scale": ("native-fp8", drop(f"{W1}.qscale_weight"), f"{W1}.qscale_weight", ["scale is missing"]),
    "missing scales of a stack": ("hf-fp8", drop(f"{HF_STACK}_scale_inv"), f"{HF_STACK}_scale_inv", ["scale is missing"]),
    "missing activation scale": ("native-fp8", drop(f"{W1}.qscale_act"), f"{W1}.qscale_act", ["scale is missing"]),
    "scale without its matrix": ("native-fp8", drop(f"{W1}.weight"), f"{W1}.weight", ["missing", f"scale {W1}.qscale_weight is stored"]),
    "stray scale": ("native-fp8", put("layers.0.gate.qscale_weight", torch.ones(())), "layers.0.gate.qscale_weight", ["not a weight"]),
    "missing block scale": ("nvfp4", drop(f"{W1}.weight_scale"), f"{W1}.weight_scale", ["scale is missing"]),
    "missing global scale": ("nvfp4", drop(f"{W1}.weight_global_scale"), f"{W1}.weight_global_scale", ["scale is missing"]),
    "scale too many": ("hf-fp8", put(f"{HF_STACK}_scale_inv", torch.ones(9, 1, 1)), f"{HF_STACK}_scale_inv", ["[9, 1, 1]"]),
    "scale in fp64": ("native-fp8", cast(f"{W1}.qscale_weight", torch.float64), f"{W1}.qscale_weight", ["F64"]),
    "NaN scale": ("native-fp8", fill(f"{W1}.qscale_weight", float("nan")), f"{W1}.qscale_weight", ["nan"]),
    "infinite scale": ("native-fp8", fill(f"{W1}.qscale_weight", float("inf")), f"{W1}.qscale_weight", ["inf"]),
    "zero scale": ("native-fp8", fill(f"{W1}.qscale_weight", 0.0), f"{W1}.qscale_weight", ["0.0"]),
    "negative scale": ("native-fp8", fill(f"{W1}.qscale_act", -1.0), f"{W1}.qscale_act", ["-1.0"]),
    "one NaN of a stack": ("hf-fp8", fill_one(f"{HF_STACK}_scale_inv", 6, float("nan")), f"{HF_STACK}_scale_inv", ["nan"]),
    "NaN divisor": ("nvfp4", fill(f"{W1}.weight_global_scale", float("nan")), f"{W1}.weight_global_scale", ["nan"]),
    "blocks": ("hf-fp8", put(f"{HF_Q_A}_scale_inv", torch.ones(2, 2)), f"{HF_Q_A}_scale_inv", ["FP8 in blocks"]),
    "bitsandbytes": ("hf", put(f"{HF_Q_A}.absmax", torch.ones(4)), f"{HF_Q_A}.absmax", ["bitsandbytes"]),
    "gptq": ("hf", put(HF_Q_A.replace("weight", "qweight"), torch.ones(4)), HF_Q_A.replace("weight", "qweight"), ["GPTQ"]),
    "e5m2": ("native", cast(Q_A, torch.float8_e5m2), Q_A, ["F8_E5M2"]),
    "int8": ("native", cast(Q_A, torch.int8), Q_A, ["I8"]),
    "eagle": ("native", put("eagle_linear.weight", torch.ones(4)), "eagle_linear.weight", ["EAGLE"]),
    "vision weights missing": ("native", drop_vision, "vision_encoder.patch_conv.weight", ["vision tower", "none of its"]),
    "vision weight missing": ("hf", drop("vision_tower.ln_pre.weight"), "vision_tower.ln_pre.weight", ["missing"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_fault(tmp_path, fault):
    layout, change, name, words = FAULTS[fault]
    FOLDERS[layout](tmp_path)
    open_checkpoint(tmp_path)  # control: sound before
    rewrite(tmp_path, change)
    error = refused(tmp_path)
    assert error.key == name
    assert str(tmp_path) in error.file
    assert all(word in str(error) for word in words), str(error)
    assert any(name in problem for problem in inspect_checkpoint(tmp_path).problems)


@pytest.mark.parametrize("layout", FOLDERS)
@pytest.mark.parametrize("keep", [-100, 1000, 5, 0])
def test_truncated_file(tmp_path, layout, keep):
    FOLDERS[layout](tmp_path, shards=2)
    file = sorted(tmp_path.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:keep])
    error = refused(tmp_path)
    assert isinstance(error, UntrustedInputError)
    assert error.file == str(file)


@pytest.mark.parametrize("layout", FOLDERS)
def test_pickle_in_place_of_a_file(tmp_path, layout):
    FOLDERS[layout](tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    torch.save({"a": torch.ones(3)}, file)
    error = refused(tmp_path)
    assert error.file == str(file)
    assert "pickle" in str(error)


@pytest.mark.parametrize("layout", FOLDERS)
@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd", "model.bin", "..", "a/b.safetensors", 7])
def test_index_cannot_lead_out_of_the_folder(tmp_path, layout, name):
    FOLDERS[layout](tmp_path, shards=2)
    (index,) = tmp_path.glob("*.index.json")
    first = next(iter(json.loads(index.read_text())["weight_map"]))
    edit_json(index, lambda content: content["weight_map"].update({first: name}))
    error = refused(tmp_path)
    assert (error.file, error.key) == (str(index), "weight_map")
    assert first in str(error)


@pytest.mark.parametrize("layout", ["hf", "native"])
def test_tensor_stored_in_two_shards(tmp_path, layout):
    FOLDERS[layout](tmp_path, shards=2)
    files = sorted(tmp_path.glob("*.safetensors"))
    first, second = load_file(files[0]), load_file(files[1])
    name = next(iter(first))
    write_safetensors(files[1], second | {name: first[name]})
    error = refused(tmp_path)
    assert (error.key, error.file) == (name, str(files[1]))
    assert "twice" in str(error)
    assert files[0].name in str(error)


@pytest.mark.parametrize("layout", ["hf-fp8", "nvfp4"])
def test_shard_that_is_not_there(tmp_path, layout):
    FOLDERS[layout](tmp_path, shards=3)
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    assert gone.name in str(refused(tmp_path))
    gone.symlink_to(tmp_path / "blobs" / "gone")
    assert "link" in str(refused(tmp_path))


@pytest.mark.parametrize("layout", ["hf", "native"])
def test_links_in_a_circle(tmp_path, layout):
    FOLDERS[layout](tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    file.unlink()
    file.symlink_to(tmp_path / "second")
    (tmp_path / "second").symlink_to(file)
    error = refused(tmp_path)
    assert error.file == str(file)
    assert "link" in str(error)


def test_links_into_a_cache_are_followed(tmp_path):
    layouts.native_folder(tmp_path / "blobs", shards=2)
    (tmp_path / "snapshot").mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(f"../blobs/{file.name}")
    assert open_checkpoint(tmp_path / "snapshot").layout == "native"


@pytest.mark.parametrize("layout", ["hf", "native"])
def test_index_that_does_not_agree_with_its_files(tmp_path, layout):
    FOLDERS[layout](tmp_path, shards=2)
    (index,) = tmp_path.glob("*.index.json")
    text = index.read_text()
    mapping = json.loads(text)["weight_map"]
    first, second = sorted(set(mapping.values()))
    moved = next(name for name, file in mapping.items() if file == first)
    edit_json(index, lambda content: content["weight_map"].update({moved: second}))
    assert refused(tmp_path).key == moved
    index.write_text(text)
    edit_json(index, lambda content: content["weight_map"].pop(moved))
    error = refused(tmp_path)
    assert error.key == moved
    assert "not listed" in str(error)
    index.write_text(text)
    edit_json(index, lambda content: content["weight_map"].update({"ghost.weight": second}))
    error = refused(tmp_path)
    assert (error.key, error.file) == ("ghost.weight", str(tmp_path / second))
    assert "the file does not hold it" in str(error)
    index.write_text('{"weight_map": []}')
    assert refused(tmp_path).key == "weight_map"


@pytest.mark.parametrize("layout", ["hf", "native"])
def test_index_beside_a_single_file(tmp_path, layout):
    FOLDERS[layout](tmp_path, shards=2)
    stem = "model" if layout == "hf" else "consolidated"
    (tmp_path / f"{stem}.safetensors").write_bytes(b"")
    assert "both" in str(refused(tmp_path))


def test_shards_beside_a_single_file(tmp_path):
    layouts.native_folder(tmp_path)
    (tmp_path / "consolidated-00001-of-00001.safetensors").write_bytes((tmp_path / "consolidated.safetensors").read_bytes())
    assert "both consolidated.safetensors and consolidated-00001-of-00001.safetensors" in str(refused(tmp_path))


@pytest.mark.parametrize("file_name", ["a" * 300 + ".safetensors", "é" * 150 + ".safetensors", "a\0.safetensors", "\x1b[2J.safetensors"])
def test_index_with_file_names_that_no_file_has(tmp_path, file_name):
    layouts.hf_folder(tmp_path, shards=2)
    edit_json(tmp_path / "model.safetensors.index.json", lambda content: content["weight_map"].update({HF_Q_A: file_name}))
    error = refused(tmp_path)
    assert error.key == "weight_map"
    assert HF_Q_A in str(error)
    assert str(error).isprintable()


@pytest.mark.parametrize("name", ["x\x1b[31m", "\u202egnp.weight", "a\0b"])
def test_index_with_unprintable_tensor_names(tmp_path, name):
    layouts.hf_folder(tmp_path, shards=2)
    edit_json(
        tmp_path / "model.safetensors.index.json", lambda content: content["weight_map"].update({name: "model-00001-of-00002.safetensors"})
    )
    error = refused(tmp_path)
    assert error.key == "weight_map"
    assert str(error).isprintable()


@pytest.mark.parametrize(
    ("layout", "file", "key"),
    [("hf-fp8", "config.json", "quantization_config"), ("native-fp8", "params.json", "quantization")],
)
def test_quantised_weights_whose_configuration_says_nothing(tmp_path, layout, file, key):
    FOLDERS[layout](tmp_path)
    edit_json(tmp_path / file, lambda content: content.pop(key))
    error = refused(tmp_path)
    assert "F8_E4M3" in str(error)
    assert f"{file} declares no quantisation" in str(error)


def test_plain_weights_whose_configuration_says_fp8(tmp_path):
    layouts.native_folder(tmp_path)
    edit_json(
        tmp_path / "params.json", lambda content: content.update(quantization={"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"})
    )
    error = refused(tmp_path)
    assert (error.file, error.key) == (str(tmp_path / "params.json"), "quantization")
    assert "declares FP8, but no tensor" in str(error)


def test_vision_weights_without_a_vision_configuration(tmp_path):
    layouts.native_folder(tmp_path)
    edit_json(tmp_path / "params.json", lambda content: content.pop("vision_encoder"))
    error = refused(tmp_path)
    assert error.key.startswith(("vision", "patch_merger"))
    assert "describes no vision tower" in str(error)


def test_asked_for_a_family_that_is_not_there(tmp_path):
    layouts.native_folder(tmp_path)
    assert "no Hugging Face ones" in str(refused(tmp_path, family="hf"))
