"""The fingerprint follows the values, not the files: re-sharding and renaming keep it, changing one number does not."""

import json

import pytest
import torch
from support.checkpoints import edit_json, rewrite, saved_tiny

from ms4_train.weights import base_fingerprint


@pytest.fixture
def folder(tmp_path):
    saved_tiny(tmp_path / "m")
    return tmp_path / "m"


def test_shards_and_prefixes_do_not_matter(folder, tmp_path):
    before = base_fingerprint(folder)
    assert before.startswith("sha256:")
    assert len(before) == 71
    saved_tiny(tmp_path / "s", max_shard_bytes=100_000)
    assert base_fingerprint(tmp_path / "s") == before

    def rename(tensors):
        renamed = {f"language_model.{name}": value for name, value in tensors.items()}
        tensors.clear()
        tensors.update(renamed)

    rewrite(folder, rename)
    assert base_fingerprint(folder) == before
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral3", "text_config": content}))
    assert base_fingerprint(folder) == before


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.gate.weight", "model.layers.0.mlp.experts.down_proj"])
def test_one_changed_value_matters(folder, name):
    before = base_fingerprint(folder)

    def change(tensors):
        tensors[name].view(-1)[-1] += 1

    rewrite(folder, change)
    assert base_fingerprint(folder) != before


def test_another_seed_type_or_constant_matters(folder, tmp_path):
    before = base_fingerprint(folder)
    saved_tiny(tmp_path / "seed", seed=1)
    saved_tiny(tmp_path / "type", dtype=torch.bfloat16)
    edit_json(folder / "config.json", lambda content: content.update(rms_norm_eps=1e-5))
    assert len({before, base_fingerprint(folder), base_fingerprint(tmp_path / "seed"), base_fingerprint(tmp_path / "type")}) == 4


def test_large_tensors_are_sampled(folder, tmp_path, monkeypatch):
    """A tensor above the limit is sampled evenly; training changes all values, so samples see it."""
    monkeypatch.setattr("ms4_train.weights.fingerprint.WHOLE_BYTES", 1024)
    before = base_fingerprint(folder)

    def change(tensors):
        tensors["model.embed_tokens.weight"] *= 1.001

    rewrite(folder, change)
    assert base_fingerprint(folder) != before
