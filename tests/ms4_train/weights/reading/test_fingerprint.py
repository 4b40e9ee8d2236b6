"""The fingerprint follows the values, not the files: layout, shards, names and types keep it, changing one number does not."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import layouts
from support.checkpoints import edit_json, rewrite, saved_tiny
from support.models import tiny_config

from ms4_train.model import RopeParameters
from ms4_train.weights import base_fingerprint, open_checkpoint
from ms4_train.weights.layouts.hf_config import hf_model_config, to_hf_config
from ms4_train.weights.reading.fingerprint import computed_constants, is_same_base, vision_fingerprint

REFERENCE = layouts.reference_pieces()


def text_fingerprint(folder, **options):
    """That of the text, which stands first."""
    return base_fingerprint(folder, **options).partition("+")[0]


@pytest.fixture
def folder(tmp_path):
    saved_tiny(tmp_path / "m")
    return tmp_path / "m"


def of(make, path, **options):
    make(path, **options)
    return text_fingerprint(path)


def test_shards_and_prefixes_do_not_matter(folder, tmp_path):
    before = text_fingerprint(folder)
    assert before.startswith("sha256:")
    assert len(before) == 71
    saved_tiny(tmp_path / "s", max_shard_bytes=100_000)
    assert text_fingerprint(tmp_path / "s") == before

    def rename(tensors):
        renamed = {f"language_model.{name}": value for name, value in tensors.items()}
        tensors.clear()
        tensors.update(renamed)

    rewrite(folder, rename)
    assert text_fingerprint(folder) == before
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral3", "text_config": content}))
    assert text_fingerprint(folder) == before


def test_layouts_of_the_same_values_agree(tmp_path):
    """Vision weights do not enter, and the order of keys and files does not either."""
    wide = {name: value.float() for name, value in REFERENCE.items()}
    found = {
        of(layouts.hf_folder, tmp_path / "disk"),
        of(layouts.hf_folder, tmp_path / "transformers", style="transformers", shards=3),
        of(layouts.hf_folder, tmp_path / "text", style="text"),
        of(layouts.native_folder, tmp_path / "native"),
        of(layouts.native_folder, tmp_path / "shards", shards=4),
        of(layouts.native_folder, tmp_path / "no vision", vision=False),
        of(layouts.native_folder, tmp_path / "wide", dtype=torch.float32, pieces=wide),
    }
    assert len(found) == 1


def test_quantised_checkpoints_agree_with_their_bf16_conversions_only(tmp_path):
    """The conversions are the reference's values, laid out in bf16 by the factories."""
    native = of(layouts.native_fp8_folder, tmp_path / "native-fp8")
    hf = of(layouts.hf_fp8_folder, tmp_path / "hf-fp8")
    nvfp4 = of(layouts.nvfp4_folder, tmp_path / "nvfp4")
    assert native == of(layouts.native_folder, tmp_path / "a", pieces=layouts.fp8_reference_pieces(REFERENCE))
    assert native == of(layouts.hf_folder, tmp_path / "b", pieces=layouts.fp8_reference_pieces(REFERENCE))
    assert hf == of(layouts.hf_folder, tmp_path / "c", pieces=layouts.hf_fp8_reference_pieces(REFERENCE))
    assert nvfp4 == of(layouts.native_folder, tmp_path / "d", pieces=layouts.nvfp4_reference_pieces(REFERENCE))
    assert len({native, hf, nvfp4, of(layouts.native_folder, tmp_path / "bf16")}) == 4


def test_the_same_with_samples_in_place_of_whole_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("ms4_train.weights.reading.fingerprint.WHOLE_VALUES", 256)
    assert of(layouts.hf_folder, tmp_path / "hf") == of(layouts.native_folder, tmp_path / "native")
    nvfp4 = of(layouts.nvfp4_folder, tmp_path / "nvfp4")
    assert nvfp4 == of(layouts.hf_folder, tmp_path / "d", pieces=layouts.nvfp4_reference_pieces(REFERENCE))
    fp8 = of(layouts.hf_fp8_folder, tmp_path / "hf-fp8")
    assert fp8 == of(layouts.native_folder, tmp_path / "c", pieces=layouts.hf_fp8_reference_pieces(REFERENCE))


def test_both_families_of_a_folder_can_be_asked_for(tmp_path):
    layouts.both_folder(tmp_path / "both")
    assert text_fingerprint(tmp_path / "both") == of(layouts.native_fp8_folder, tmp_path / "native")
    assert text_fingerprint(tmp_path / "both", family="hf") == of(layouts.hf_fp8_folder, tmp_path / "hf")


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.gate.weight", "model.layers.0.mlp.experts.down_proj"])
def test_one_changed_value_matters(folder, name):
    before = text_fingerprint(folder)

    def change(tensors):
        tensors[name].view(-1)[-1] += 1

    rewrite(folder, change)
    assert text_fingerprint(folder) != before


@pytest.mark.parametrize(
    ("make", "name", "index"),
    [
        (layouts.native_fp8_folder, "layers.1.experts.6.w3.weight", 100),
        (layouts.native_fp8_folder, "layers.1.experts.6.w3.qscale_weight", 0),
        (layouts.hf_fp8_folder, "language_model.model.layers.0.mlp.experts.down_proj_scale_inv", 3),
        (layouts.nvfp4_folder, "layers.0.experts.1.w2.weight_packed", 31),
        (layouts.nvfp4_folder, "layers.0.experts.1.w2.weight_scale", 5),
        (layouts.nvfp4_folder, "layers.0.experts.1.w2.weight_global_scale", 0),
    ],
)
def test_one_changed_code_or_scale_matters(tmp_path, make, name, index):
    before = of(make, tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    tensors = load_file(file)
    flat = tensors[name].view(-1)
    flat[index : index + 1].view(torch.uint8)[-1] ^= 0x11  # of a scale's highest byte: another positive number
    save_file(tensors, file)
    assert text_fingerprint(tmp_path) != before


def test_activation_scales_do_not_matter(tmp_path):
    before = of(layouts.native_fp8_folder, tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({name: value * 2 for name, value in tensors.items() if "qscale_act" in name}))
    assert text_fingerprint(tmp_path) == before


def test_another_seed_or_constant_or_rounding_matters(folder, tmp_path):
    before = text_fingerprint(folder)
    saved_tiny(tmp_path / "seed", seed=1)
    saved_tiny(tmp_path / "rounded", dtype=torch.bfloat16)
    edit_json(folder / "config.json", lambda content: content.update(rms_norm_eps=1e-5))
    assert len({before, text_fingerprint(folder), text_fingerprint(tmp_path / "seed"), text_fingerprint(tmp_path / "rounded")}) == 4


def test_the_attention_scale_matters(tmp_path):
    plain, scaled = (of(layouts.native_folder, tmp_path / str(scale), apply_scale=scale) for scale in (False, True))
    assert plain != scaled


def test_spellings_of_the_same_arithmetic_agree(tmp_path):
    """A plain scale is ``mscale_all_dim`` 1 in the release's files and 0 with ``attention_factor`` 1 in ours."""
    before = of(layouts.hf_folder, tmp_path)

    def respell(content):
        rope = content["text_config"]["rope_parameters"]
        rope |= {"mscale_all_dim": 0.0, "attention_factor": 1.0}
        content["text_config"] |= {"initializer_range": 0.5, "eos_token_id": 7, "softmax_scale": "plain", "max_position_embeddings": 4096}

    edit_json(tmp_path / "config.json", respell)
    assert text_fingerprint(tmp_path) == before
    edit_json(tmp_path / "config.json", lambda content: content["text_config"]["rope_parameters"].pop("attention_factor"))
    assert text_fingerprint(tmp_path) != before  # 0 alone moves the factor of cos and sin


@pytest.mark.parametrize("scale", ["plain", "mscale"])
def test_constants_survive_a_config_json(tmp_path, scale):
    config = tiny_config(softmax_scale=scale)
    again = hf_model_config(to_hf_config(config, dtype=torch.bfloat16), file=tmp_path).text
    assert computed_constants(again) == computed_constants(config)


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"rope_parameters": RopeParameters(factor=16.0, **rope)}
            for rope in ({"beta_slow": 2.0}, {"llama_4_scaling_beta": 0.2}, {"truncate": False})
        ),
        {"num_experts_per_tok": 3},
        {"norm_topk_prob": False},
        {"routed_scaling_factor": 2.0},
    ],
)
def test_constants_of_the_arithmetic_matter(change):
    base = tiny_config(rope_parameters=RopeParameters(factor=16.0))
    assert computed_constants(tiny_config(**({"rope_parameters": base.rope_parameters} | change))) != computed_constants(base)


def test_large_pieces_are_sampled(folder, monkeypatch):
    """Training changes all values, so samples see it."""
    monkeypatch.setattr("ms4_train.weights.reading.fingerprint.WHOLE_VALUES", 256)
    before = text_fingerprint(folder)

    def change(tensors):
        tensors["model.embed_tokens.weight"] *= 1.001

    rewrite(folder, change)
    assert text_fingerprint(folder) != before


@pytest.mark.parametrize(("index", "is_sampled"), [(0, True), (63, True), (64, False), (-65, False), (-64, True), (-1, True)])
def test_samples_lie_at_both_ends_of_a_large_piece(folder, monkeypatch, index, is_sampled):
    monkeypatch.setattr("ms4_train.weights.reading.fingerprint.WHOLE_VALUES", 256)
    before = text_fingerprint(folder)

    def change(tensors):
        tensors["model.embed_tokens.weight"].view(-1)[index] += 1

    rewrite(folder, change)
    assert (text_fingerprint(folder) != before) == is_sampled


def of_vision(make, path, **options):
    make(path, **options)
    return vision_fingerprint(open_checkpoint(path))


@pytest.mark.parametrize("whole_values", [1 << 15, 256])
def test_the_vision_has_its_own_the_same_in_every_layout(tmp_path, monkeypatch, whole_values):
    """Quantised layouts store the vision as the others do; native ones permute rows of it."""
    monkeypatch.setattr("ms4_train.weights.reading.fingerprint.WHOLE_VALUES", whole_values)
    wide = {name: value.float() for name, value in REFERENCE.items()}
    found = {
        of_vision(layouts.hf_folder, tmp_path / "disk"),
        of_vision(layouts.hf_folder, tmp_path / "transformers", style="transformers", shards=3),
        of_vision(layouts.hf_fp8_folder, tmp_path / "hf-fp8"),
        of_vision(layouts.native_folder, tmp_path / "native"),
        of_vision(layouts.native_folder, tmp_path / "wide", dtype=torch.float32, pieces=wide),
        of_vision(layouts.native_fp8_folder, tmp_path / "native-fp8", shards=4),
        of_vision(layouts.nvfp4_folder, tmp_path / "nvfp4"),
    }
    assert len(found) == 1
    assert str(found.pop()).startswith("sha256:")
    assert of_vision(layouts.native_folder, tmp_path / "text", vision=False) is None


@pytest.mark.parametrize("name", ["vision_tower.ln_pre.weight", "vision_tower.transformer.layers.1.attention.k_proj.weight"])
def test_a_changed_tower_changes_that_of_the_vision_alone(tmp_path, name):
    before = of(layouts.native_folder, tmp_path / "a"), of_vision(layouts.native_folder, tmp_path / "a")
    changed = REFERENCE | {name: REFERENCE[name] + 1}
    after = of(layouts.native_folder, tmp_path / "b", pieces=changed), of_vision(layouts.native_folder, tmp_path / "b", pieces=changed)
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)
    layouts.hf_folder(tmp_path / "c")
    edit_json(tmp_path / "c" / "config.json", lambda content: content["vision_config"].update(rope_parameters={"rope_theta": 20000.0}))
    assert text_fingerprint(tmp_path / "c") == before[0]
    assert vision_fingerprint(open_checkpoint(tmp_path / "c")) != before[1]


def test_text_fingerprints_are_those_of_earlier_versions(tmp_path):
    """Recorded before vision was read; adapters carry them."""
    assert of(layouts.native_folder, tmp_path) == "sha256:15e3ebcbc73cccfa38e27416d8e2699d03c5cda77952dbe51f18d4a7a504f026"


def test_the_whole_is_text_and_vision(tmp_path):
    layouts.native_folder(tmp_path / "seeing")
    checkpoint = open_checkpoint(tmp_path / "seeing")
    whole = base_fingerprint(tmp_path / "seeing")
    assert whole == f"{text_fingerprint(tmp_path / 'seeing')}+{vision_fingerprint(checkpoint)}"
    layouts.native_folder(tmp_path / "text", vision=False)
    assert whole.startswith(base_fingerprint(tmp_path / "text") + "+")


@pytest.mark.parametrize(
    ("recorded", "found", "of_text", "of_vision"),
    [
        ("a+v", "a+v", True, True),
        ("a+v", "a+w", True, False),  # an adapter of the text alone fits whatever sees before it
        ("a", "a+v", True, True),  # recorded before there was vision
        ("a+v", "a", True, True),  # what the model lacks is found by the names of the tensors
        ("a+v", "b+v", False, False),
    ],
)
def test_which_bases_are_one(recorded, found, of_text, of_vision):
    assert is_same_base(recorded, found, vision=False) == of_text
    assert is_same_base(recorded, found, vision=True) == of_vision
