"""The vision configuration agrees with transformers' own and refuses what the tower does not compute."""

import pytest
from transformers import Mistral3Config, PixtralVisionConfig

from ms4_train.errors import WeightsError
from ms4_train.model import VisionConfig


def test_release_size():
    # 403,305,472 of the tower and 25,166,848 of the projector: spec section 1.3.
    assert VisionConfig().num_parameters(4096) == 403_305_472 + 25_166_848


def test_round_trip_through_transformers():
    ours = VisionConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, head_dim=16, rope_theta=500.0)
    tower, beside = ours.to_hf()
    theirs = Mistral3Config(vision_config=tower, **beside)
    assert isinstance(theirs.vision_config, PixtralVisionConfig)
    assert (theirs.vision_config.head_dim, theirs.vision_config.rope_parameters["rope_theta"]) == (16, 500.0)
    assert VisionConfig.from_hf(theirs.to_dict()) == ours


def test_absent_values_are_the_release_s():
    assert VisionConfig.from_hf({"vision_config": {}}) == VisionConfig()


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"vision_config": 3}, "vision_config"),
        ({"vision_config": {"hidden_act": "gelu"}}, "vision_config.hidden_act"),
        ({"vision_config": {"hidden_size": -1}}, "hidden_size"),
        ({"vision_config": {"hidden_size": "1024"}}, "hidden_size"),
        ({"vision_config": {"patch_size": True}}, "patch_size"),
        ({"vision_config": {"num_hidden_layers": 10**6}}, "num_hidden_layers"),
        ({"vision_config": {"head_dim": 32}}, "head_dim"),
        ({"vision_config": {"hidden_size": 32, "num_attention_heads": 16}}, "head_dim"),
        ({"vision_config": {}, "multimodal_projector_bias": True}, "multimodal_projector_bias"),
        ({"vision_config": {}, "spatial_merge_size": 1.5}, "spatial_merge_size"),
    ],
)
def test_what_is_not_computed_is_refused_with_its_key(content, key):
    with pytest.raises(WeightsError) as caught:
        VisionConfig.from_hf(content)
    assert caught.value.key == key
    assert caught.value.fix
