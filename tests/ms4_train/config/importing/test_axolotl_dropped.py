"""Keys without a place here: each with a reason, unknown ones by name."""

from __future__ import annotations

import pytest

from ms4_train.config.importing.axolotl_dropped import REASONS, drop_the_rest
from ms4_train.config.importing.draft import Draft
from ms4_train.config.nodes import to_document
from ms4_train.untrusted import parse_yaml


def dropped(text, run=None):
    draft = Draft(to_document(parse_yaml(text), file="a.yml"), run=run or {})
    drop_the_rest(draft)
    return {entry.source: entry.words for entry in draft.entries}, draft.warnings


def test_known_keys_have_their_reason_and_no_warning():
    text = "\n".join(f"{key}: 1" for key in REASONS)
    found, warnings = dropped(text)
    assert found == REASONS
    assert warnings == []


@pytest.mark.parametrize(
    ("text", "key", "words", "warns"),
    [
        ("wandb_watch:", "wandb_watch", "left empty", False),
        ("lora_r: 3", "lora_r", "there is no adapter", False),
        ("brand_new: 3", "brand_new", "not known to this translator", True),
        ("flash_atention: true", "flash_atention", "is it flash_attention?", True),
        ("plugins: [axolotl.integrations.liger.LigerPlugin]", "plugins.0", "kernels are chosen by device", False),
        ("plugins: [mine.Plugin]", "plugins.0", "code of others is not run", True),
    ],
)
def test_others(text, key, words, warns):
    found, warnings = dropped(text)
    assert list(found) == [key]
    assert words in found[key]
    assert bool(warnings) == warns


def test_unknown_adapter_keys_are_not_taken_for_harmless():
    found, warnings = dropped("lora_new_thing: 3", run={"adapter": {}})
    assert "not known" in found["lora_new_thing"]
    assert warnings
