"""Scales come back from JSON to the bit, whatever their type; a file that does not fit the model is refused by name."""

import json

import pytest
import torch
from support import layouts

from ms4_train.errors import UntrustedInputError, WeightsError
from ms4_train.weights.convert import convert
from ms4_train.weights.reading.checkpoint import open_checkpoint
from ms4_train.weights.scales_file import (
    SCALE_DTYPES,
    SCALES_FILE,
    PieceScales,
    find_scales,
    fp8_pieces,
    read_scales,
    scales_of,
    scales_text,
)


@pytest.fixture(scope="module")
def fp8(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fp8")
    layouts.native_fp8_folder(folder / "native")
    layouts.hf_fp8_folder(folder / "hf")
    layouts.native_folder(folder / "plain")
    return folder


@pytest.fixture(scope="module")
def config(fp8):
    return open_checkpoint(fp8 / "native").config


def is_same(one, other):
    def same(a, b):
        return (a is None and b is None) or (a.dtype == b.dtype and a.shape == b.shape == () and torch.equal(a, b))

    return one.keys() == other.keys() and all(
        same(one[name].weight, other[name].weight) and same(one[name].activation, other[name].activation) for name in one
    )


def test_the_factorys_scales_by_our_names(fp8):
    stored = layouts.native_fp8_tensors(layouts.reference_pieces())
    found = scales_of(open_checkpoint(fp8 / "native"))
    name = "model.layers.1.mlp.experts.5.up_proj.weight"
    assert torch.equal(found[name].weight, stored["layers.1.experts.5.w3.qscale_weight"])
    assert torch.equal(found[name].activation, stored["layers.1.experts.5.w3.qscale_act"])
    assert len(found) == 2 * (5 + 3 + 3 * 8)
    assert scales_of(open_checkpoint(fp8 / "plain")) == {}


@pytest.mark.parametrize("dtype", SCALE_DTYPES.values())
def test_every_value_comes_back_to_the_bit(tmp_path, config, dtype):
    """Random bits of the type, the smallest subnormal and the largest number among them."""
    names = fp8_pieces(config)
    size = torch.finfo(dtype)
    values = torch.randint(1, 2**15, (2 * len(names),)).to(torch.int16)
    exact = values.view(dtype) if dtype.itemsize == 2 else (torch.rand(2 * len(names)) * 10.0 ** torch.randint(-30, 30, (2 * len(names),)))
    exact = torch.where(torch.isfinite(exact) & (exact > 0), exact, torch.ones((), dtype=dtype)).to(dtype)
    exact[0], exact[1] = size.smallest_normal * size.eps, size.max
    scales = {name: PieceScales(exact[2 * i].clone(), exact[2 * i + 1].clone()) for i, name in enumerate(names)}
    (tmp_path / SCALES_FILE).write_text(scales_text(scales))
    assert is_same(read_scales(tmp_path / SCALES_FILE, config), scales)


def test_dynamic_activations_have_null(tmp_path, config):
    scales = {name: PieceScales(torch.tensor(0.5), None) for name in fp8_pieces(config)}
    (tmp_path / SCALES_FILE).write_text(scales_text(scales))
    assert is_same(read_scales(tmp_path / SCALES_FILE, config), scales)


def test_scales_are_found_in_fp8_folders_sidecars_and_files(fp8, tmp_path, config):
    native = scales_of(open_checkpoint(fp8 / "native"))
    assert is_same(find_scales(fp8 / "native", config), native)
    assert is_same(find_scales(fp8 / "hf", config), scales_of(open_checkpoint(fp8 / "hf")))
    convert(fp8 / "native", tmp_path / "plain", to="hf", progress=None)
    assert is_same(find_scales(tmp_path / "plain", config), native)
    assert is_same(find_scales(tmp_path / "plain" / SCALES_FILE, config), native)
    with pytest.raises(WeightsError, match="neither FP8 weights"):
        find_scales(fp8 / "plain", config)
    with pytest.raises(UntrustedInputError):
        find_scales(tmp_path / "nowhere", config)


def test_scales_of_another_model_are_refused(tmp_path, config):
    other = layouts.Tiny(num_hidden_layers=3)
    layouts.native_fp8_folder(tmp_path / "larger", tiny=other)
    with pytest.raises(WeightsError, match=r"layers\.2"):
        find_scales(tmp_path / "larger", config)


NAME = "model.layers.0.mlp.experts.3.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        (lambda c: c["scales"].pop(NAME), NAME, "no scales"),
        (lambda c: c["scales"].update({NAME.replace("down", "dawn"): c["scales"][NAME]}), NAME.replace("down", "dawn"), "down_proj"),
        (lambda c: c["scales"].update({NAME: [1, 2]}), NAME, "exactly weight and activation"),
        (lambda c: c["scales"][NAME].update(weight=["BF16", 0.1]), f"{NAME}: weight", "exactly"),
        (lambda c: c["scales"][NAME].update(weight=["BF16", 0]), f"{NAME}: weight", "positive"),
        (lambda c: c["scales"][NAME].update(weight=["BF16", -1]), f"{NAME}: weight", "positive"),
        (lambda c: c["scales"][NAME].update(weight=["BF16", True]), f"{NAME}: weight", "a type and a number"),
        (lambda c: c["scales"][NAME].update(weight=["I8", 1]), f"{NAME}: weight", "a type and a number"),
        (lambda c: c["scales"][NAME].update(weight=None), f"{NAME}: weight", "a type and a number"),
        (lambda c: c["scales"][NAME].update(activation=None), NAME, "no activation scale"),
        (lambda c: c.update(scales=[]), "scales", "must map"),
        (lambda c: c.update(version=2), None, "version"),
    ],
)
def test_faults_are_named(fp8, tmp_path, config, change, key, words):
    content = json.loads(scales_text(scales_of(open_checkpoint(fp8 / "native"))))
    change(content)
    (tmp_path / SCALES_FILE).write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=words) as caught:
        read_scales(tmp_path / SCALES_FILE, config)
    assert caught.value.key == key
    assert caught.value.file.endswith(SCALES_FILE)
    assert caught.value.fix
