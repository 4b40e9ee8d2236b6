"""The whole model from every public layout: tower and projector by the layout's definition, logits of images equal to transformers'.

Tolerance 1e-5 of the largest logit, as for text: fp32 sums in another order; measured 2e-6.
"""

import re

import pytest
import torch
from support import layouts
from support.checkpoints import relative_error, rewrite
from support.layouts_pieces import is_vision_piece
from support.seeing import our_image_logits, their_image_logits, two_images

from ms4_train.errors import MS4Error
from ms4_train.model import Mistral3ForConditionalGeneration, Mistral4ForCausalLM
from ms4_train.model.quantised import quantised_modules
from ms4_train.weights.convert import convert
from ms4_train.weights.reading import loading
from ms4_train.weights.reading.checkpoint import open_checkpoint
from ms4_train.weights.reading.loading import load_model

CLOSE = 1e-5
REFERENCE = layouts.reference_pieces()
VISION = {name: value for name, value in REFERENCE.items() if is_vision_piece(name)}
MAKERS = {
    "hf": layouts.hf_folder,
    "transformers' names": lambda path, **options: layouts.hf_folder(path, style="transformers", **options),
    "native": layouts.native_folder,
    "hf-fp8": layouts.hf_fp8_folder,
    "native-fp8": layouts.native_fp8_folder,
    "nvfp4": layouts.nvfp4_folder,
}


@pytest.mark.parametrize("style", ["disk", "transformers"])
def test_logits_of_images_equal_those_of_transformers(tmp_path, style):
    layouts.hf_folder(tmp_path, style=style, dtype=torch.float32)
    expected = their_image_logits(tmp_path)
    model = load_model(tmp_path, dtype=torch.float32, softmax_scale="mscale")  # transformers' reading of mscale_all_dim 1
    assert relative_error(our_image_logits(model), expected) < CLOSE
    swapped = [image.flip(2) for image in two_images()]
    assert relative_error(our_image_logits(model, swapped), expected) > 100 * CLOSE  # control: the images are seen


def test_the_native_order_of_vision_rows_is_not_transformers(tmp_path):
    """Control of the permutation: native rows taken as they lie give other logits."""
    layouts.native_folder(tmp_path / "native", dtype=torch.float32)
    layouts.hf_folder(tmp_path / "hf", dtype=torch.float32)
    expected = their_image_logits(tmp_path / "hf")
    model = load_model(tmp_path / "native", dtype=torch.float32, softmax_scale="mscale")
    assert relative_error(our_image_logits(model), expected) < CLOSE
    stored = layouts.native_tensors(layouts.reference_pieces(dtype=torch.float32))
    for name, parameter in model.named_parameters():
        if re.search(r"vision_tower.*\.[qk]_proj\.", name):
            parameter.data.copy_(stored[layouts.native_name(name)])
    assert relative_error(our_image_logits(model), expected) > 100 * CLOSE


@pytest.mark.parametrize("chunk", [32 << 20, 5 * 32 * 2])  # the second: five rows of the tower in bf16
@pytest.mark.parametrize("dequantise", [True, False])
@pytest.mark.parametrize("layout", MAKERS)
def test_vision_is_the_same_in_every_layout(tmp_path, monkeypatch, layout, dequantise, chunk):
    monkeypatch.setattr(loading, "CHUNK_BYTES", chunk)
    MAKERS[layout](tmp_path, shards=3)
    calls = []
    model = load_model(tmp_path, dtype=torch.bfloat16, dequantise=dequantise, progress=lambda done, total: calls.append((done, total)))
    assert isinstance(model, Mistral3ForConditionalGeneration)
    found = {name: parameter for name, parameter in model.named_parameters() if is_vision_piece(name)}
    assert found.keys() == VISION.keys()
    for name, parameter in found.items():
        assert torch.equal(parameter, VISION[name]), name
    assert not any(is_vision_piece(name) for name, _ in quantised_modules(model))  # no layout quantises them
    assert calls[-1][0] == calls[-1][1] > sum(value.nbytes for value in VISION.values())


def test_native_and_hf_give_the_same_bits(tmp_path):
    layouts.hf_folder(tmp_path / "hf")
    layouts.native_folder(tmp_path / "native")
    hf, native = (load_model(tmp_path / name, dtype=torch.float32) for name in ("hf", "native"))
    assert torch.equal(our_image_logits(hf), our_image_logits(native))


@pytest.mark.parametrize(
    "way", [("native", "hf"), ("hf", "native", "hf"), ("native-fp8", "hf", "native-fp8"), ("nvfp4", "hf"), ("hf-fp8", "hf")]
)
def test_conversions_keep_the_whole_model(tmp_path, way):
    """Around through the converter, the loaded model is the same bit for bit in fp32 where the way loses nothing."""
    MAKERS[way[0]](tmp_path / "0")
    before = load_model(tmp_path / "0", dtype=torch.bfloat16)
    for number, target in enumerate(way[1:], 1):
        convert(tmp_path / str(number - 1), tmp_path / str(number), to=target, dtype="bfloat16", progress=None)
    after = load_model(tmp_path / str(len(way) - 1), dtype=torch.bfloat16)
    theirs = after.state_dict()
    assert theirs.keys() == before.state_dict().keys()
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    assert torch.equal(our_image_logits(before.float()), our_image_logits(after.float()))


def test_vision_may_be_left_out_with_one_warning(tmp_path, caplog):
    layouts.native_folder(tmp_path)
    whole = load_model(tmp_path, dtype=torch.bfloat16)
    assert not caplog.records
    model = load_model(tmp_path, dtype=torch.bfloat16, vision="skip")
    assert type(model) is Mistral4ForCausalLM
    assert [f"{len(VISION)} vision tensors" in record.getMessage() for record in caplog.records] == [True]
    state = model.state_dict()
    assert state.keys() == {name for name in whole.state_dict() if not is_vision_piece(name)}
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in state.items())


@pytest.mark.parametrize("vision", ["auto", "skip"])
def test_a_text_checkpoint_gives_the_text_network(tmp_path, caplog, vision):
    layouts.native_folder(tmp_path, vision=False)
    assert type(load_model(tmp_path, dtype=torch.bfloat16, vision=vision)) is Mistral4ForCausalLM
    assert not caplog.records


def test_every_rank_reads_the_whole_vision(tmp_path):
    layouts.native_folder(tmp_path)
    model = load_model(tmp_path, dtype=torch.bfloat16, expert_range=(2, 5))
    assert model.get_submodule("model.layers.0.mlp.experts").num_local_experts == 3
    assert all(torch.equal(model.get_parameter(name), value) for name, value in VISION.items())


def test_types_of_the_vision_follow_the_text(tmp_path):
    layouts.native_folder(tmp_path)
    model = load_model(tmp_path, dtype=torch.float32)
    for name, value in VISION.items():
        parameter = model.get_parameter(name)
        assert parameter.dtype == torch.float32
        assert parameter.requires_grad
        assert torch.equal(parameter, value.float())


def test_a_missing_vision_tensor_is_named(tmp_path):
    layouts.native_folder(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.pop("vision_encoder.transformer.layers.1.attention.wk.weight"))
    with pytest.raises(MS4Error, match=r"layers\.1\.attention\.wk\.weight"):
        load_model(tmp_path, dtype=torch.float32)


def test_names_and_shapes_are_those_of_the_pieces(tmp_path):
    layouts.hf_folder(tmp_path)
    config = open_checkpoint(tmp_path).config
    shapes = loading.expected_shapes(config.text, config.vision)
    assert {name: shape for name, shape in shapes.items() if is_vision_piece(name)} == {k: tuple(v.shape) for k, v in VISION.items()}
    assert [name for name in shapes if not is_vision_piece(name)] == list(loading.expected_shapes(config.text))
