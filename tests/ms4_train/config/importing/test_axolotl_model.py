"""Base model and precision."""

from __future__ import annotations

import pytest

from ms4_train.config.importing.axolotl_model import translate_model
from ms4_train.config.importing.draft import Draft
from ms4_train.config.nodes import to_document
from ms4_train.untrusted import parse_yaml


def model_of(text):
    draft = Draft(to_document(parse_yaml(text), file="a.yml"))
    translate_model(draft)
    return draft, draft.run["model"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base_model: org/name", {"path": "models/name"}),
        ("base_model: ./local/folder\nbf16: auto", {"path": "./local/folder", "dtype": "bfloat16"}),
        ("base_model: /a/b\nbf16: false", {"path": "/a/b", "dtype": "float32"}),
        ("base_model: a/b\nfp16: true\nbf16: false", {"path": "models/b", "dtype": "bfloat16"}),
        ("base_model: a/b\nfloat32: true", {"path": "models/b", "dtype": "float32"}),
        ("base_model: a/b\nload_in_4bit: false\nload_in_8bit: off", {"path": "models/b"}),
        ("base_model: x/Mistral-Small-4-119B-2603\nload_in_8bit: true", {"path": "models/Mistral-Small-4-119B-2603", "dequantize": False}),
        ("base_model: a/b\nadapter: qlora", {"path": "models/b", "dequantize": False}),
    ],
)
def test_model_section(text, expected):
    assert model_of(text)[1] == expected


def test_comments_say_where_the_files_come_from():
    draft, _ = model_of("base_model: org/name")
    assert draft.comments["model", "path"] == ["Get it with: ms4 pull org/name models/name"]
    draft, _ = model_of("base_model: ./here\nload_in_4bit: true")
    assert "ms4 weights convert --to native-fp8" in draft.comments["model", "path"][0]
    assert any("weights in BF16 are read as they are" in warning for warning in draft.warnings)


@pytest.mark.parametrize(("base", "is_other"), [("mistralai/Mistral-7B", True), ("org/Mistral-Small-4-119B", False), ("./mine", False)])
def test_another_model_is_told(base, is_other):
    draft, _ = model_of(f"base_model: {base}")
    assert any("does not look like Mistral Small 4" in warning for warning in draft.warnings) == is_other
