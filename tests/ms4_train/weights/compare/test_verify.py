"""Right conversions pass, every planted mistake fails at its own block; numbers against whole networks in memory."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from support.layouts import (
    TINY,
    fp8_reference_pieces,
    hf_folder,
    hf_fp8_folder,
    hf_fp8_reference_pieces,
    native_folder,
    native_fp8_folder,
    nvfp4_folder,
    nvfp4_reference_pieces,
    permute_vision_rows,
    reference_pieces,
)

from ms4_train.errors import WeightsError
from ms4_train.model import SequenceLayout
from ms4_train.weights import load_model, open_checkpoint
from ms4_train.weights.compare import verify as module
from ms4_train.weights.compare.verify import compare_logits, expectation_of, fixed_sequences, token_error

SEQUENCES = fixed_sequences(TINY.vocab_size)
LAYER1 = "model.layers.1.mlp.experts.3."


def compared(source, result, **options):
    return compare_logits(open_checkpoint(source), open_checkpoint(result), SEQUENCES, **options)


def written(folder, make, **options):
    make(folder, **options)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return written(tmp_path_factory.mktemp("plain"), hf_folder)


@pytest.fixture(scope="module")
def fp8(tmp_path_factory):
    return written(tmp_path_factory.mktemp("fp8"), native_fp8_folder)


@pytest.mark.parametrize(
    ("source", "result", "options"),
    [
        (hf_folder, native_folder, {}),
        (native_folder, hf_folder, {"style": "transformers"}),
        (native_fp8_folder, native_fp8_folder, {"scale_dtype": torch.float32}),
        (native_fp8_folder, hf_folder, {"pieces": fp8_reference_pieces(reference_pieces())}),
        (hf_fp8_folder, native_folder, {"pieces": hf_fp8_reference_pieces(reference_pieces())}),
        (nvfp4_folder, hf_folder, {"pieces": nvfp4_reference_pieces(reference_pieces())}),
    ],
    ids=["hf-native", "native-hf", "fp8-fp8", "fp8-hf", "hf-fp8-native", "nvfp4-hf"],
)
def test_right_lossless_conversions_leave_no_difference(tmp_path, source, result, options):
    if options.get("scale_dtype"):  # values of bf16 scales, held in a wider type, are the same
        source(tmp_path / "a", scale_dtype=torch.float32)
    else:
        source(tmp_path / "a")
    result(tmp_path / "b", **options)
    found = compared(tmp_path / "a", tmp_path / "b")
    assert found.expectation.tolerance == 0
    assert found.passed
    assert {stage.error for stage in found.stages} == {0.0}
    assert [stage.name for stage in found.stages] == [
        "embedding",
        *(f"layer {layer}, {half}" for layer in range(2) for half in ("attention", "experts")),
        "head",
    ]
    assert (found.logits.max_relative_error, found.logits.same_first_choice, float(found.logits.kl_t.abs().max())) == (0, 1, 0)
    assert (found.num_sequences, found.num_tokens, found.num_weights > 0) == (4, 96, True)
    assert 0 < found.reached <= found.num_experts == 16


def test_wider_weights_are_judged_as_the_result_stores_them(tmp_path):
    wide = reference_pieces(dtype=torch.float32)
    hf_folder(tmp_path / "a", pieces=wide, dtype=torch.float32)
    native_folder(tmp_path / "b", pieces={name: value.bfloat16() for name, value in wide.items()})
    assert compared(tmp_path / "a", tmp_path / "b").passed
    truncated = {name: (value.view(torch.int32) & ~0xFFFF).view(torch.float32).bfloat16() for name, value in wide.items()}
    native_folder(tmp_path / "c", pieces=truncated)  # cut off instead of rounded to nearest
    assert compared(tmp_path / "a", tmp_path / "c").first_failing is not None


@pytest.mark.parametrize(
    ("source", "result"), [(hf_folder, native_fp8_folder), (native_fp8_folder, hf_fp8_folder), (hf_folder, hf_fp8_folder)]
)
def test_lossy_conversions_pass_within_the_stated_tolerance(tmp_path, source, result):
    source(tmp_path / "a")
    result(tmp_path / "b")
    found = compared(tmp_path / "a", tmp_path / "b")
    assert found.expectation.tolerance == module.FP8_TOLERANCE
    assert found.passed, found.stages
    worst = max(stage.error for stage in found.stages)
    assert 0.001 < worst < module.FP8_TOLERANCE
    assert not compared(tmp_path / "a", tmp_path / "b", tolerance=worst * 0.9).passed
    assert compared(tmp_path / "a", tmp_path / "b", tolerance=worst * 1.1).passed


def test_four_bits_pass_within_theirs(tmp_path, plain):
    nvfp4_folder(tmp_path)
    found = compared(plain, tmp_path)
    assert found.expectation.tolerance == module.FP4_TOLERANCE
    assert found.passed, found.stages


def swap(pieces):
    pieces[f"{LAYER1}gate_proj.weight"], pieces[f"{LAYER1}up_proj.weight"] = (
        pieces[f"{LAYER1}up_proj.weight"],
        pieces[f"{LAYER1}gate_proj.weight"],
    )


def flip(name):
    return lambda pieces: pieces.update({name: -pieces[name]})


def scale(name, factor):
    return lambda pieces: pieces.update({name: pieces[name] * factor})


MISTAKES = {
    "swapped gate and up": (swap, "layer 1, experts", "gate and up are swapped"),
    "flipped sign": (flip("model.layers.1.self_attn.kv_b_proj.weight"), "layer 1, attention", "every sign flipped"),
    "wrong scale": (scale("model.layers.0.mlp.shared_experts.down_proj.weight", 2), "layer 0, experts", "is 2 times the source's"),
    "rows in another order": (
        lambda pieces: pieces.update({(n := "model.layers.0.self_attn.q_b_proj.weight"): pieces[n].roll(1, 0)}),
        "layer 0, attention",
        "rows in another order",
    ),
    "another expert": (
        lambda pieces: pieces.update({f"{LAYER1}down_proj.weight": pieces[f"{LAYER1}down_proj.weight".replace(".3.", ".5.")].clone()}),
        "layer 1, experts",
        "source's expert 5",
    ),
    "norm": (scale("model.norm.weight", 3), "head", "is 3 times"),
    "router": (flip("model.layers.0.mlp.gate.weight"), "layer 0, experts", "every sign flipped"),
    "embedding": (scale("model.embed_tokens.weight", -0.5), "embedding", "is -0.5 times"),
}


def test_a_swap_that_blocks_forgive_is_seen_in_the_weights(tmp_path):
    """For small x, silu(x) is x / 2, so that gate and up of small values can change places almost unseen; a fresh model has such."""
    pieces = {name: value * 0.2 if ".mlp.experts." in name else value for name, value in reference_pieces().items()}
    hf_folder(tmp_path / "a", pieces=pieces)
    native_fp8_folder(tmp_path / "right", pieces=pieces)
    swapped = dict(pieces)
    swap(swapped)
    native_fp8_folder(tmp_path / "b", pieces=swapped)
    assert compared(tmp_path / "a", tmp_path / "right").passed
    found = compared(tmp_path / "a", tmp_path / "b")
    assert found.first_failing is None  # without the weights it would pass
    assert not found.passed
    assert {piece.name for piece in found.weights} == {f"{LAYER1}gate_proj.weight", f"{LAYER1}up_proj.weight"}
    assert found.cause is not None
    assert "gate and up are swapped" in found.cause.words


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("result", [native_folder, native_fp8_folder])
def test_mistakes_fail_at_their_own_block_lossless_and_lossy(tmp_path, plain, mistake, result):
    change, stage, words = MISTAKES[mistake]
    pieces = reference_pieces()
    change(pieces)
    result(tmp_path, pieces=pieces)
    found = compared(plain, tmp_path)
    assert not found.passed
    assert found.first_failing is not None
    assert found.first_failing.name == stage
    assert found.cause is not None
    assert words in found.cause.words
    assert found.logits.max_relative_error > 0
    before = found.stages[: found.stages.index(found.first_failing)]
    assert not any(one.fails for one in before)
    if result is native_fp8_folder:  # each block is judged by its own input, so that a single mistake makes a single failure
        assert [one.name for one in found.stages if one.fails] == [stage]


def test_what_no_prompt_reaches_is_compared_by_value(tmp_path, plain):
    sequence = [[5, 6]]
    source = open_checkpoint(plain)
    reached = compare_logits(source, source, sequence)
    assert reached.reached < reached.num_experts
    expert = next(e for e in range(8) if (1, e) not in _reached(source, sequence))
    changes = {"model.embed_tokens.weight": (57, 0), f"model.layers.1.mlp.experts.{expert}.up_proj.weight": (0, 0)}
    for name, index in changes.items():
        pieces = reference_pieces()
        pieces[name][index] += 1
        native_folder(tmp_path / name, pieces=pieces)
        found = compare_logits(source, open_checkpoint(tmp_path / name), sequence)
        assert found.first_failing is None
        assert not found.passed
        assert [piece.name for piece in found.weights] == [name]
        assert found.cause is not None
        assert "differs in 1 of" in found.cause.words


def _reached(checkpoint, sequences):
    from ms4_train.weights.compare.layerwise import LayerwiseModel

    model = LayerwiseModel(checkpoint)
    layout = SequenceLayout.from_lengths([len(one) for one in sequences])
    hidden_td = model.embed(torch.tensor([token for one in sequences for token in one]))
    for layer in range(model.config.num_hidden_layers):
        for half in ("attention", "experts"):
            hidden_td = hidden_td + model.block(layer, half, hidden_td, model.plan(layout))
    return model.experts_reached


def test_vision_rows_that_no_text_reaches_are_compared(tmp_path, plain):
    pieces = reference_pieces()
    name = "vision_tower.transformer.layers.1.attention.q_proj.weight"
    native_folder(tmp_path, pieces=pieces | {name: permute_vision_rows(pieces[name], 2, to_native=False)})
    found = compared(plain, tmp_path)
    assert not found.passed
    assert found.first_failing is None
    assert [piece.name for piece in found.weights] == [name]


def test_another_arithmetic_fails_and_is_named(tmp_path, plain):
    native_folder(tmp_path, apply_scale=True)
    found = compared(plain, tmp_path)
    assert not found.passed
    assert {change.key for change in found.config} == {"attention_scale"}
    assert found.first_failing is not None
    assert found.first_failing.name == "layer 0, attention"
    assert found.cause is None  # the weights are right


def test_weights_that_are_no_numbers_fail(tmp_path, plain):
    pieces = reference_pieces()
    pieces["model.layers.1.self_attn.o_proj.weight"][3, 3] = math.nan
    native_folder(tmp_path, pieces=pieces)
    found = compared(plain, tmp_path)
    assert not found.passed
    assert not found.logits.is_finite
    assert found.first_failing is not None
    assert found.first_failing.name == "layer 1, attention"
    assert found.cause is not None
    assert "not finite" in found.cause.words
    assert not compared(plain, tmp_path, tolerance=1e9).passed


@torch.no_grad()
def test_numbers_against_whole_networks(tmp_path, plain):
    """A pair of unrelated models, so that every number is large; tolerance given, so that the result runs on both inputs."""
    native_folder(tmp_path, seed=1)
    found = compared(plain, tmp_path, tolerance=1e9)
    assert found.passed
    ids_t, layout = (
        torch.tensor([token for one in SEQUENCES for token in one]),
        SequenceLayout.from_lengths([len(one) for one in SEQUENCES]),
    )
    hidden = []
    for folder in (plain, tmp_path):
        model = load_model(folder, dtype=torch.float32, vision="skip").eval()
        hidden.append((model, model(ids_t, layout)))
    a, b = (model.logits(states) for model, states in hidden)
    assert found.logits.max_relative_error == pytest.approx(float((a - b).abs().max() / a.abs().max()), rel=1e-4)
    expected = F.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    assert float(found.logits.kl_t.mean()) == pytest.approx(float(expected.mean()), rel=1e-4)
    assert found.logits.same_first_choice == pytest.approx(float((a.argmax(-1) == b.argmax(-1)).double().mean()))
    embedding = [model.model.embed_tokens(ids_t) for model, _ in hidden]
    assert found.stages[0].error == pytest.approx(token_error(*embedding), rel=1e-6)
    assert found.stages[0].error > 0.5


def test_errors_of_tokens():
    source = torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0]])
    assert token_error(source, source) == 0
    assert token_error(source, source + torch.tensor([[0.0], [5e-1], [0.0]])) == pytest.approx(math.sqrt(0.5) / 5)
    assert token_error(source, source + torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 1.0]])) == pytest.approx(0.2)  # floor: the median, 5
    assert token_error(torch.zeros(2, 2), torch.ones(2, 2)) == math.inf
    assert token_error(source, source * math.nan) == math.inf


def test_pairs_that_cannot_be_compared_are_refused(tmp_path, plain):
    small = dataclasses.replace(TINY, vocab_size=400)
    native_folder(tmp_path / "small", tiny=small)
    with pytest.raises(WeightsError, match=r"model\.embed_tokens\.weight: has shape \[400, 64\].*two different models"):
        compared(plain, tmp_path / "small")
    deep = dataclasses.replace(TINY, num_hidden_layers=3)
    native_folder(tmp_path / "deep", tiny=deep)
    with pytest.raises(WeightsError, match=r"model\.layers\.2.*not in the source"):
        compared(plain, tmp_path / "deep")
    source = open_checkpoint(plain)
    for sequences, words in (([], "no token"), ([[]], "no token"), ([[512]], "512 is out of range"), ([[1] * 9000], "9,000 tokens")):
        with pytest.raises(WeightsError, match=words):
            compare_logits(source, source, sequences)


def test_text_alone_against_text_and_vision(tmp_path, plain):
    native_folder(tmp_path, vision=False)
    found = compared(plain, tmp_path)
    assert found.passed
    assert found.num_weights == 1 + 3 * (found.num_experts - found.reached)  # the embedding, and experts that no token went to


def test_progress_names_each_block(plain):
    seen = []
    compared(plain, plain, progress=lambda done, total, name: seen.append((done, total, name)))
    assert {one[2] for one in seen[6:]} == {"weights"}
    seen = seen[:6]
    assert [one[0] for one in seen] == list(range(6))
    assert {one[1] for one in seen} == {6}
    assert seen[3][2] == "layer 1, attention"


def test_what_pairs_are_expected_to_cost(plain, fp8, tmp_path):
    half = written(tmp_path / "half", hf_folder, dtype=torch.float16, pieces={k: v.half() for k, v in reference_pieces().items()})
    hf_fp8 = written(tmp_path / "hf", hf_fp8_folder)
    opened = {name: open_checkpoint(path) for name, path in {"plain": plain, "fp8": fp8, "half": half, "hf-fp8": hf_fp8}.items()}
    costs = {(a, b): expectation_of(opened[a], opened[b]).tolerance for a in opened for b in opened}
    assert costs["plain", "half"] == costs["half", "plain"] == module.HALF_TOLERANCE
    assert costs["fp8", "plain"] == costs["fp8", "fp8"] == costs["half", "half"] == 0
    assert costs["plain", "fp8"] == costs["fp8", "hf-fp8"] == costs["hf-fp8", "fp8"] == module.FP8_TOLERANCE
    assert compare_logits(opened["plain"], opened["half"], SEQUENCES).passed
