"""What presets match, counted from shapes alone, is what attaching them makes."""

import pytest
from support.adapted import adapted, section
from support.models import tiny_config
from support.multimodal import tiny_vision

from ms4_train.adapters import attach_report
from ms4_train.adapters.presets import preset_matches
from ms4_train.config.schema import PRESETS
from ms4_train.weights.reading.loading import empty_model


@pytest.mark.parametrize("preset", PRESETS)
def test_counts_are_those_of_the_attached_adapter(preset):
    (found,) = [match for match in preset_matches(empty_model(tiny_config(), vision=tiny_vision()), rank=4) if match.preset == preset]
    model = adapted(section(preset=preset), vision=True, filled=False)
    report = attach_report(model, section(preset=preset))
    assert found.rows == report.rows
    assert found.parameters == report.trainable
    assert found.problem is None


def test_a_text_model_has_no_preset_for_vision():
    found = {match.preset: match for match in preset_matches(empty_model(tiny_config()), rank=4)}
    assert {preset for preset, match in found.items() if match.problem} == {"vision", "all"}
    assert "preset: language" in (found["all"].problem or "")
    assert found["language"].rows == found["attention+experts"].rows
