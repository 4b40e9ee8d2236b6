"""Pieces add up to the release, and stack to transformers' own parameters."""

import math

import torch
from support.models import hf_config, tiny_config
from transformers import Mistral4ForCausalLM

from ms4_train.model import TextConfig, VisionConfig
from ms4_train.weights.layouts.pieces import ModelConfig, Part, pieces


def test_release_counts():
    config = ModelConfig(TextConfig(), VisionConfig())
    found = list(pieces(config))
    assert len({piece.name for piece in found}) == len(found)
    assert sum(piece.numel for piece in found) == config.num_parameters() == 119_401_298_944  # spec section 1.3
    assert sum(piece.part in (Part.EXPERT, Part.SHARED) for piece in found) == 13_932  # spec section 3.4
    assert sum(piece.part is Part.ATTENTION for piece in found) == 36 * 5


def test_names_and_shapes_are_transformers_with_experts_stacked():
    config = tiny_config()
    with torch.device("meta"):
        theirs = {name: tuple(p.shape) for name, p in Mistral4ForCausalLM(hf_config(config)).named_parameters()}
    ours: dict[str, list[tuple[int, ...]]] = {}
    for piece in pieces(ModelConfig(config)):
        name = piece.name
        if piece.part is Part.EXPERT:
            stack = "down_proj" if piece.matrix == "down_proj" else "gate_up_proj"
            name = f"model.layers.{piece.layer}.mlp.experts.{stack}"
        ours.setdefault(name, []).append(piece.shape)
    assert list(ours) == sorted(ours, key=list(ours).index)
    assert ours.keys() == theirs.keys()
    for name, shapes in ours.items():
        assert sum(math.prod(shape) for shape in shapes) == math.prod(theirs[name])
        if len(shapes) == 1:
            assert shapes[0] == theirs[name]
