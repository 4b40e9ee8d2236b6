"""Stacks as PEFT stored them up to 0.19.0 and as it stores them since; told apart, and unpacked to the same change of the weights."""

import json
from pathlib import Path

import pytest
import torch
from support.adapted import adapted, logits_of, section
from support.checkpoints import STACKS, edit_json, rewrite
from support.models import tiny_config, tiny_model
from torch import nn

from ms4_train.adapters import adapter_tensors, load_adapter, save_adapter
from ms4_train.adapters.stack_layout import (
    StackLayout,
    StackShapes,
    exchange,
    find_layout,
    pack_a,
    pack_b,
    unpack_a,
    unpack_b,
    version_layout,
)
from ms4_train.errors import AdapterError

FILE = Path("a/adapter_config.json")
EXPERTS = 8


class Experts(nn.Module):
    """What PEFT's wrapper needs of experts. ``is_transposed`` makes 0.21 compute what 0.18 and 0.19.0 computed of every stack."""

    def __init__(self, is_transposed):
        super().__init__()
        self.stack = nn.Parameter(torch.zeros(EXPERTS, 6, 10))
        self.is_transposed = is_transposed


@pytest.mark.parametrize("layout", list(StackLayout))
def test_unpacked_pair_gives_the_change_that_peft_computes(layout):
    from peft import LoraConfig
    from peft.tuners.lora.layer import ParamWrapper

    settings = LoraConfig(r=3, lora_alpha=6, init_lora_weights=False)
    wrapper = ParamWrapper(Experts(layout is StackLayout.OLD), "default", "stack", config=settings, r=3, lora_alpha=6)
    a, b = wrapper.lora_A["default"].weight.detach(), wrapper.lora_B["default"].weight.detach()
    shapes = StackShapes("x", 6, 10, tuple(a.shape), tuple(b.shape))
    assert [other for other in StackLayout if shapes.fits(other)] == [layout]
    a_eri, b_eor = unpack_a(a, EXPERTS), unpack_b(b, EXPERTS)
    if layout is StackLayout.OLD:
        a_eri, b_eor = exchange(a_eri, b_eor)
    assert torch.allclose(wrapper.get_delta_weight("default"), 2 * torch.einsum("eor,eri->eoi", b_eor, a_eri), atol=1e-6)


def test_packing_is_undone_exactly():
    a_eri, b_eor = torch.randn(EXPERTS, 3, 5), torch.randn(EXPERTS, 7, 3)
    assert torch.equal(unpack_a(pack_a(a_eri), EXPERTS), a_eri)
    assert torch.equal(unpack_b(pack_b(b_eor), EXPERTS), b_eor)
    assert pack_b(b_eor)[2, 1 * EXPERTS + 4] == b_eor[4, 2, 1]  # neighbouring columns are neighbouring experts
    assert all(torch.equal(one, two) for one, two in zip(exchange(*exchange(a_eri, b_eor)), (a_eri, b_eor), strict=True))


@pytest.mark.parametrize(
    ("version", "layout"),
    [
        ("0.17.1", StackLayout.OLD),
        ("0.18.1", StackLayout.OLD),
        ("0.19.0", StackLayout.OLD),
        ("0.19.1", StackLayout.NEW),
        ("0.21.0", StackLayout.NEW),
        ("1.0.0", StackLayout.NEW),
        ("0.20.1.dev0@abcdef", StackLayout.NEW),
        ("0.19.1.dev0", None),
        (None, None),
        (21, None),
        ("main", None),
    ],
)
def test_version(version, layout):
    assert version_layout(version) is layout


SQUARE = StackShapes("s", 8, 8, (24, 8), (8, 24))
NEW = StackShapes("n", 6, 10, (24, 10), (6, 24))
OLD = StackShapes("o", 6, 10, (24, 6), (10, 24))


def found(stacks, version=None, ours=False):
    return find_layout(stacks, {"peft_version": version}, ours=ours, file=FILE)


def test_shapes_decide_and_then_the_version():
    assert found([SQUARE, NEW]) is StackLayout.NEW
    assert found([SQUARE, OLD]) is StackLayout.OLD
    assert found([SQUARE, NEW], "0.18.0") is StackLayout.NEW
    assert found([SQUARE], "0.18.0") is StackLayout.OLD
    assert found([SQUARE], "0.21.0") is StackLayout.NEW
    assert found([SQUARE], ours=True) is StackLayout.NEW


@pytest.mark.parametrize(
    ("stacks", "options", "message"),
    [
        ([NEW, OLD], {}, "layout of PEFT up to"),
        ([OLD], {"version": "0.21.0"}, "exchanged"),
        ([OLD], {"ours": True}, "this program wrote it"),
        ([SQUARE], {}, "shapes do not tell"),
    ],
)
def test_what_cannot_be_told_is_refused(stacks, options, message):
    with pytest.raises(AdapterError, match=message) as caught:
        found(stacks, **options)
    assert caught.value.fix
    assert caught.value.key


def old_folder(folder, parameters):
    """An adapter as PEFT 0.18 would have written it, and the logits with it."""
    settings = section(target_modules=[], target_parameters=parameters)
    model = adapted(settings)
    tensors = adapter_tensors(model)
    save_adapter(tensors, folder, section=settings, config=model.config, base_path="base", base_fingerprint="sha256:0")
    (folder / "ms4_adapter.json").unlink()
    edit_json(folder / "adapter_config.json", lambda content: content.update(peft_version="0.18.1"))

    def turn(stored):
        for name in [name for name in stored if ".lora_A." in name]:
            other = name.replace("lora_A", "lora_B")
            a_eri, b_eor = exchange(unpack_a(stored[name], EXPERTS), unpack_b(stored[other], EXPERTS))
            stored[name], stored[other] = pack_a(a_eri), pack_b(b_eor)

    rewrite(folder, turn)
    return logits_of(model)


@pytest.mark.parametrize("parameters", [STACKS, STACKS[:1], STACKS[1:]])
def test_adapter_of_an_older_peft_loads(tmp_path, parameters):
    expected = old_folder(tmp_path / "a", parameters)
    model = tiny_model()
    load_adapter(model, tmp_path / "a", base_fingerprint=None)
    assert torch.equal(logits_of(model), expected)
    assert not torch.equal(logits_of(tiny_model()), expected)


def test_square_stacks_need_the_version(tmp_path):
    """Gate and up are square here, as in the release. Read the other way they load too, and are another adapter."""
    assert 2 * tiny_config().moe_intermediate_size == tiny_config().hidden_size
    expected = old_folder(tmp_path / "a", STACKS[:1])
    file = tmp_path / "a" / "adapter_config.json"
    edit_json(file, lambda content: content.update(peft_version=None))
    with pytest.raises(AdapterError, match="shapes do not tell") as caught:
        load_adapter(tiny_model(), tmp_path / "a", base_fingerprint=None)
    assert caught.value.key == "peft_version"
    edit_json(file, lambda content: content.update(peft_version="0.21.0"))
    model = tiny_model()
    load_adapter(model, tmp_path / "a", base_fingerprint=None)
    assert not torch.allclose(logits_of(model), expected, atol=1e-3)


def test_transposed_adapter_is_refused(tmp_path):
    old_folder(tmp_path / "a", STACKS)
    edit_json(tmp_path / "a" / "adapter_config.json", lambda content: content.update(peft_version="0.21.0"))
    with pytest.raises(AdapterError, match="inputs and outputs are exchanged"):
        load_adapter(tiny_model(), tmp_path / "a", base_fingerprint=None)
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["peft_version"] == "0.21.0"
