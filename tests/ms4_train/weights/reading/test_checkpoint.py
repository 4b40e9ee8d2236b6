"""Every public layout gives the pieces that it was made from; factories and reference values know nothing of the package under test."""

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file
from support import layouts
from support.checkpoints import edit_json, rewrite, write_safetensors

from ms4_kernels.quantised import Fp8Weight, Nvfp4Weight
from ms4_train.errors import WeightsError
from ms4_train.weights.layouts.tables import HfNames
from ms4_train.weights.reading.checkpoint import open_checkpoint

REFERENCE = layouts.reference_pieces()
MAKERS = {
    "hf": (layouts.hf_folder, lambda: REFERENCE),
    "native": (layouts.native_folder, lambda: REFERENCE),
    "hf-fp8": (layouts.hf_fp8_folder, lambda: layouts.hf_fp8_reference_pieces(REFERENCE)),
    "native-fp8": (layouts.native_fp8_folder, lambda: layouts.fp8_reference_pieces(REFERENCE)),
    "nvfp4": (layouts.nvfp4_folder, lambda: layouts.nvfp4_reference_pieces(REFERENCE)),
}
Q_A = "model.layers.1.self_attn.q_a_proj.weight"
UP = "model.layers.1.mlp.experts.5.up_proj.weight"
DOWN = "model.layers.0.mlp.experts.7.down_proj.weight"


@pytest.fixture(params=MAKERS)
def made(request, tmp_path):
    """(layout, checkpoint, stored tensors, reference pieces)."""
    make, reference = MAKERS[request.param]
    stored = make(tmp_path)
    return request.param, open_checkpoint(tmp_path), stored, reference()


def values(checkpoint, piece, rows=None):
    found = checkpoint.read_piece(piece, rows)
    return found if isinstance(found, torch.Tensor) else found.dequantise(torch.bfloat16)


def raw(tensor):
    return tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor


def test_pieces_equal_the_reference(made):
    layout, checkpoint, stored, reference = made
    assert checkpoint.layout == layout
    assert checkpoint.pieces().keys() == reference.keys()
    for name, piece in checkpoint.pieces().items():
        assert torch.equal(values(checkpoint, piece), reference[name]), name
        for dtype in (torch.float32, torch.bfloat16):  # cast, and without a copy in between
            into = torch.empty(piece.shape, dtype=dtype)
            checkpoint.read_into(piece, into)
            assert torch.equal(into.bfloat16(), reference[name]), name
    assert checkpoint.stored.keys() == stored.keys()
    assert checkpoint.num_bytes == sum(tensor.nbytes for tensor in stored.values())
    assert checkpoint.dtype == torch.bfloat16


@pytest.mark.parametrize("rows", [(0, 3), (5, 17), (31, 32), (4, 4)])
def test_rows_equal_the_rows_of_the_whole(made, rows):
    _, checkpoint, _, reference = made
    for name in (Q_A, UP, DOWN, "lm_head.weight", "model.norm.weight", "vision_tower.transformer.layers.1.attention.k_proj.weight"):
        piece = checkpoint.pieces()[name]
        assert torch.equal(values(checkpoint, piece, rows), reference[name][slice(*rows)]), name


@pytest.mark.parametrize(("layout", "shards"), [("hf", 3), ("native", 2), ("hf-fp8", 2), ("native-fp8", 3), ("nvfp4", 4)])
def test_shards_hold_the_same(tmp_path, layout, shards):
    make, reference = MAKERS[layout]
    make(tmp_path, shards=shards)
    checkpoint = open_checkpoint(tmp_path)
    assert len(checkpoint.files) == shards
    expected = reference()
    assert all(torch.equal(values(checkpoint, piece), expected[name]) for name, piece in checkpoint.pieces().items())


@pytest.mark.parametrize(
    ("style", "vision", "names"),
    [
        ("disk", True, HfNames.DISK),
        ("transformers", True, HfNames.TRANSFORMERS),
        ("text", False, HfNames.TEXT),
        ("disk", False, HfNames.DISK),
    ],
)
@pytest.mark.parametrize("layout", ["hf", "hf-fp8"])
def test_every_style_of_hugging_face_names(tmp_path, layout, style, vision, names):
    make, reference = MAKERS[layout]
    make(tmp_path, style=style, vision=vision)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.table.hf_names is names
    assert (checkpoint.config.vision is not None) == vision
    expected = reference()
    assert all(torch.equal(values(checkpoint, piece), expected[name]) for name, piece in checkpoint.pieces().items())


def test_text_only_native(tmp_path):
    layouts.native_folder(tmp_path, vision=False)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config.vision is None
    assert not any(name.startswith("vision") for name in checkpoint.pieces())


def test_stored_tensors_come_as_they_are(made):
    _, checkpoint, stored, _ = made
    (file,) = checkpoint.files
    library = load_file(file)
    for name in stored:
        assert torch.equal(checkpoint.read_stored(name), raw(library[name])), name
    name = next(name for name, tensor in stored.items() if tensor.ndim == 2)
    assert torch.equal(checkpoint.read_stored(name, (3, 6)), raw(library[name])[3:6])


def test_spans_are_the_bytes_of_values_or_codes(made):
    layout, checkpoint, _, _ = made
    for name in (Q_A, UP, DOWN):
        piece = checkpoint.pieces()[name]
        file, start, stop = checkpoint.span(piece)
        found = checkpoint.read_piece(piece)
        expected = found if isinstance(found, torch.Tensor) else found.codes
        assert file.read_bytes()[start:stop] == expected.view(torch.uint8).numpy().tobytes()
    permuted = checkpoint.pieces()["vision_tower.transformer.layers.0.attention.q_proj.weight"]
    assert (checkpoint.span(permuted) is None) == (not layout.startswith("hf"))


def test_scales_are_those_of_the_files(made):
    layout, checkpoint, stored, _ = made
    pieces = checkpoint.pieces()
    names = {
        "hf-fp8": {
            Q_A: ("language_model.model.layers.1.self_attn.q_a_proj.weight_scale_inv", None),
            UP: ("language_model.model.layers.1.mlp.experts.gate_up_proj_scale_inv", 5),
            DOWN: ("language_model.model.layers.0.mlp.experts.down_proj_scale_inv", 7),
        },
        "native-fp8": {
            Q_A: ("layers.1.attention.wq_a.qscale_weight", None),
            UP: ("layers.1.experts.5.w3.qscale_weight", None),
            DOWN: ("layers.0.experts.7.w2.qscale_weight", None),
        },
        "nvfp4": {
            UP: ("layers.1.experts.5.w3.weight_global_scale", None),
            DOWN: ("layers.0.experts.7.w2.weight_global_scale", None),
        },
    }.get(layout, {})
    for name in (Q_A, UP, DOWN):
        scale = checkpoint.weight_scale(pieces[name])
        if name not in names:
            assert scale is None
            assert checkpoint.activation_scale(pieces[name]) is None
            continue
        where, expert = names[name]
        expected = stored[where].reshape(-1)[expert or 0]
        assert scale.dtype == expected.dtype
        assert scale.shape == ()
        assert scale == expected
        activation = where.replace("qscale_weight", "qscale_act").replace("weight_global", "input_global")
        activation = activation.replace("proj_scale_inv", "proj_activation_scale").replace("weight_scale_inv", "activation_scale")
        assert checkpoint.activation_scale(pieces[name]) == stored[activation].reshape(-1)[expert or 0]


def test_quantised_pieces_hold_codes_and_fp32_scales(made):
    layout, checkpoint, _, _ = made
    kind = {"hf-fp8": Fp8Weight, "native-fp8": Fp8Weight, "nvfp4": Nvfp4Weight}.get(layout, torch.Tensor)
    assert isinstance(checkpoint.read_piece(checkpoint.pieces()[UP]), kind)
    assert isinstance(checkpoint.read_piece(checkpoint.pieces()["model.layers.0.mlp.gate.weight"]), torch.Tensor)


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_scales_of_other_types_and_shapes(tmp_path, shape, dtype):
    stored = layouts.native_fp8_folder(tmp_path, scale_dtype=dtype)

    def reshape(tensors):
        for name in [name for name in tensors if "qscale" in name]:
            tensors[name] = tensors[name].reshape(shape)

    rewrite(tmp_path, reshape)
    checkpoint = open_checkpoint(tmp_path)
    scale = checkpoint.weight_scale(checkpoint.pieces()[UP])
    assert (scale.dtype, scale.shape) == (dtype, ())
    assert scale == stored["layers.1.experts.5.w3.qscale_weight"]
    assert torch.equal(values(checkpoint, checkpoint.pieces()[UP]), layouts.fp8_reference_pieces(REFERENCE, scale_dtype=dtype)[UP])


def test_activation_scales_may_all_be_absent(tmp_path):
    layouts.hf_fp8_folder(tmp_path)
    rewrite(tmp_path, lambda tensors: [tensors.pop(name) for name in list(tensors) if "activation" in name])
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.activation_scale(checkpoint.pieces()[UP]) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("layout", ["hf", "native"])
def test_other_types_of_plain_values(tmp_path, layout, dtype):
    MAKERS[layout][0](tmp_path, dtype=dtype)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.dtype == dtype
    assert checkpoint.read_piece(checkpoint.pieces()[UP]).dtype == dtype
    rewrite(tmp_path, lambda tensors: tensors.update({name: value.double() for name, value in tensors.items() if value.ndim == 1}))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.read_piece(checkpoint.pieces()["model.norm.weight"]).dtype == torch.float64
    assert checkpoint.dtype == dtype  # of the most bytes


def test_native_files_are_preferred_and_either_can_be_asked_for(tmp_path, caplog):
    layouts.both_folder(tmp_path)
    with caplog.at_level(logging.INFO):
        found = open_checkpoint(tmp_path)
    assert found.layout == "native-fp8"
    assert sum("native ones are read" in record.getMessage() for record in caplog.records) == 1
    assert open_checkpoint(tmp_path, family="hf").layout == "hf-fp8"
    assert open_checkpoint(tmp_path, family="native").layout == "native-fp8"


def test_the_softmax_scale_is_the_files_or_the_callers(tmp_path):
    layouts.native_folder(tmp_path, apply_scale=True)
    assert open_checkpoint(tmp_path).config.text.softmax_scale == "mscale"
    assert open_checkpoint(tmp_path, softmax_scale="plain").config.text.softmax_scale == "plain"


def test_native_shards_without_an_index(tmp_path):
    layouts.native_folder(tmp_path, shards=3)
    (tmp_path / "consolidated.safetensors.index.json").unlink()
    checkpoint = open_checkpoint(tmp_path)
    assert torch.equal(values(checkpoint, checkpoint.pieces()[UP]), REFERENCE[UP])
    files = sorted(tmp_path.glob("*.safetensors"))
    first = load_file(files[0])
    name = next(iter(first))
    write_safetensors(files[1], load_file(files[1]) | {name: first[name]})
    with pytest.raises(WeightsError, match="twice") as caught:
        open_checkpoint(tmp_path)
    assert (caught.value.key, caught.value.file) == (name, str(files[1]))


def test_scales_of_the_kv_cache_are_skipped(tmp_path):
    layouts.nvfp4_folder(tmp_path)
    extra = "vision_encoder.transformer.layers.0.attention.k_fake_quantizer.qscale_act"
    rewrite(tmp_path, lambda tensors: tensors.update({extra: torch.tensor(0.0)}))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.skipped == (extra,)
    assert extra not in checkpoint.stored


def bytes_read():
    with open("/proc/self/io") as handle:  # noqa: PTH123 - the counters of this process
        return int(next(line for line in handle if line.startswith("rchar")).split()[1])


def test_opening_reads_headers_and_scales_only(tmp_path):
    layouts.native_fp8_folder(tmp_path)
    open_checkpoint(tmp_path).close()  # imports and caches
    before = bytes_read()
    checkpoint = open_checkpoint(tmp_path)
    opening = bytes_read() - before
    header = min(stored.info.start for stored in checkpoint.stored.values())
    weights = sum(stored.num_bytes for stored in checkpoint.stored.values() if stored.num_bytes > 64)
    assert opening < 2 * header + weights / 4
    before = bytes_read()
    checkpoint.read_piece(checkpoint.pieces()[UP])
    assert bytes_read() - before < 2 * checkpoint.pieces()[UP].numel + 512


def test_memory_is_not_shared_with_the_file(tmp_path):
    layouts.hf_folder(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    found = checkpoint.read_piece(checkpoint.pieces()[UP])
    (file,) = checkpoint.files
    file.write_bytes(b"\0" * file.stat().st_size)
    assert torch.equal(found, REFERENCE[UP])


def test_threads_read_side_by_side(made):
    _, checkpoint, _, reference = made
    pieces = list(checkpoint.pieces().values()) * 3
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda piece: values(checkpoint, piece), pieces))
    assert all(torch.equal(value, reference[piece.name]) for value, piece in zip(found, pieces, strict=True))


def test_file_that_shrinks_after_opening_is_a_typed_error(made):
    _, checkpoint, _, _ = made
    (file,) = checkpoint.files
    file.write_bytes(file.read_bytes()[:-100])
    last = max(checkpoint.stored.values(), key=lambda stored: stored.info.stop)
    with pytest.raises(WeightsError, match="cannot be read") as caught:
        checkpoint.read_stored(last.stored_name)
    assert (caught.value.file, caught.value.key) == (str(file), last.stored_name)


@pytest.mark.parametrize(
    ("layout", "name", "stored"),
    [
        ("native-fp8", UP, "layers.1.experts.5.w3.weight"),
        ("hf-fp8", DOWN, "language_model.model.layers.0.mlp.experts.down_proj"),
        ("nvfp4", UP, "layers.1.experts.5.w3.weight_scale"),
    ],
)
@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_codes_that_are_not_numbers_are_refused(tmp_path, layout, name, stored, code):
    MAKERS[layout][0](tmp_path)

    def damage(tensors):
        flat = tensors[stored].view(torch.uint8)
        (flat if flat.ndim == 2 else flat[7])[11, -1] = code

    rewrite(tmp_path, damage)
    checkpoint = open_checkpoint(tmp_path)  # opening reads no weights
    piece = checkpoint.pieces()[name]
    for read in (lambda: checkpoint.read_piece(piece), lambda: checkpoint.read_into(piece, torch.empty(piece.shape))):
        with pytest.raises(WeightsError, match="NaN") as caught:
            read()
        assert caught.value.key == stored
        assert caught.value.file == str(checkpoint.files[0])
    checkpoint.read_piece(piece, rows=(0, 11))  # the damage is in row 11
    neighbour = checkpoint.pieces()[name.replace(".5.", ".4.").replace(".7.", ".6.")]
    checkpoint.read_piece(neighbour)


def test_configuration_beside_the_weights_is_checked_against_them(tmp_path):
    layouts.native_folder(tmp_path)
    edit_json(tmp_path / "params.json", lambda content: content.update(n_layers=3))
    with pytest.raises(WeightsError, match="missing") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.key == "layers.2.attention_norm.weight"
