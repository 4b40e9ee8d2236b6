"""Names of mistakes, each planted in a matrix of its own; and what is not called a mistake."""

import pytest
import torch
from support.layouts import hf_folder, native_folder, native_fp8_folder, reference_pieces

from ms4_train.weights import open_checkpoint
from ms4_train.weights.compare import cause as module
from ms4_train.weights.compare.cause import find_cause

BLOCK = ("model.layers.1.mlp.", "model.layers.1.post_attention_layernorm.")
GATE = "model.layers.1.mlp.experts.3.gate_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


def changed(weight, change):
    weight = weight.clone()
    change(weight)
    return weight


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    hf_folder(folder)
    return open_checkpoint(folder)


def cause_of(source, folder, name, weight, prefixes=BLOCK, make=native_folder):
    make(folder, pieces=reference_pieces() | {name: weight})
    return find_cause(source, open_checkpoint(folder), prefixes, 0.25 if make is native_fp8_folder else 0.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.neg_(), "every sign flipped"),
        (lambda w: w.mul_(0.75), "is 0.75 times the source's: a wrong scale"),
        (lambda w: w.copy_(w[torch.randperm(len(w), generator=torch.Generator().manual_seed(1))].clone()), "rows in another order"),
        (lambda w: w.copy_(reference_pieces()[GATE.replace("gate", "up")]), "holds the source's up_proj: gate and up are swapped"),
        (lambda w: w.copy_(reference_pieces()[GATE.replace(".3.", ".6.")]), "holds the source's expert 6"),
        (lambda w: w[3, :4].zero_(), "differs in 4 of 2,048 values"),
        (lambda w: w[3, 5].mul_(1.0078125), "differs in 1 of 2,048 values"),  # hardly moved, but its row is in its place
        (lambda w: w[20:22].copy_(w[20:22].flip(0)), "rows in another order"),
        (lambda w: w.normal_(generator=torch.Generator().manual_seed(2)), "of its norm"),
        (lambda w: w[0, 0].fill_(torch.inf), "not finite"),
    ],
)
def test_each_mistake_has_its_name(source, tmp_path, change, words):
    found = cause_of(source, tmp_path, GATE, changed(reference_pieces()[GATE], change))
    assert found is not None
    assert found.piece.name == GATE
    assert words in found.words


def test_the_furthest_piece_of_the_block_is_named_and_others_are_not(source, tmp_path):
    pieces = reference_pieces()
    pieces[GATE] *= 1.5
    pieces["model.layers.1.mlp.gate.weight"] *= 4
    pieces["model.layers.0.mlp.gate.weight"] *= -9  # another block
    native_folder(tmp_path, pieces=pieces)
    found = find_cause(source, open_checkpoint(tmp_path), BLOCK)
    assert found is not None
    assert found.piece.name == "model.layers.1.mlp.gate.weight"
    assert find_cause(source, open_checkpoint(tmp_path), ("model.layers.1.self_attn.",)) is None


def test_rounding_to_fp8_hides_no_mistake(source, tmp_path):
    found = cause_of(source, tmp_path, GATE, -reference_pieces()[GATE], make=native_fp8_folder)
    assert found is not None
    assert found.piece.name == GATE
    assert "every sign flipped" in found.words


def test_rows_that_changed_places_far_down_are_seen(source, tmp_path):
    wrong = changed(reference_pieces()[EMBEDDING], lambda w: w[300:302].copy_(w[300:302].flip(0).clone()))
    found = cause_of(source, tmp_path, EMBEDDING, wrong, (EMBEDDING,))
    assert found is not None
    assert found.words == "has the source's rows in another order"


def test_of_a_large_piece_the_rows_around_the_difference_are_looked_at(source, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_VALUES", 64 * 100)
    wrong = changed(reference_pieces()[EMBEDDING], lambda w: w[300:400].neg_())
    found = cause_of(source, tmp_path, EMBEDDING, wrong, (EMBEDDING,))
    assert found is not None
    assert found.words == "has every sign flipped"
