"""Companions are found by name, bounded in size, and never programs, weights or configurations."""

import pytest

from ms4_train.errors import UntrustedInputError
from ms4_train.weights import companions
from ms4_train.weights.companions import companion_names, read_companions

WANTED = ("LICENSE", "LICENSE.md", "SYSTEM_PROMPT.txt", "chat_template.jinja", "generation_config.json", "preprocessor_config.json")
OTHERS = (
    *("config.json", "params.json", "model.safetensors", "model.safetensors.index.json", "consolidated.safetensors", "SHA256SUMS"),
    *(
        "LICENSE.py",
        "NOTICE.safetensors",
        "README.md",
        "modeling_mistral.py",
        "pytorch_model.bin",
        "tekken.json.bak",
        ".gitattributes",
        "hub.json",
        "fp8_scales.json",
    ),
)


def test_names(tmp_path):
    for name in (*WANTED, *OTHERS, "tekken.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).write_text(name)
    (tmp_path / "LICENSES").mkdir()
    expected = sorted((*WANTED, "tekken.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"))
    assert companion_names(tmp_path) == expected
    assert read_companions(tmp_path) == {name: name.encode() for name in expected}


@pytest.mark.parametrize("name", ["LICENSE\nx", "LICENSE\x1b[31m", "NOTICE\\x", "LICENSE\udcff"])
def test_names_that_no_sums_can_hold_are_refused_at_once(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(UntrustedInputError, match="holds a file named"):
        read_companions(tmp_path)


def test_links_are_followed_and_broken_or_large_ones_refused(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "blob").write_text("x" * 100)
    (folder / "tekken.json").symlink_to(tmp_path / "blob")
    assert read_companions(folder) == {"tekken.json": b"x" * 100}
    monkeypatch.setattr(companions, "MAX_COMPANION_BYTES", 99)
    with pytest.raises(UntrustedInputError, match=r"tekken\.json.*larger"):
        read_companions(folder)
    (tmp_path / "blob").unlink()
    with pytest.raises(UntrustedInputError, match=r"tekken\.json"):
        read_companions(folder)
