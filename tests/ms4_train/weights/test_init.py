"""Model files become checkpoints that load; every file in configs/models is read."""

import json
from pathlib import Path

import pytest
import torch

from ms4_train.errors import ConfigError, StorageError, TokenizerError
from ms4_train.weights import base_fingerprint, init_checkpoint, load_model, read_model_file
from ms4_train.weights.init import tokenizer_size

MODELS = Path(__file__).resolve().parents[3] / "configs" / "models"
TINY = MODELS / "tiny.yaml"


@pytest.mark.parametrize("file", sorted(MODELS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_model_file_is_read(file):
    config = read_model_file(file)
    assert config.num_experts_per_tok == 4
    assert config.softmax_scale == "plain"
    assert config.rope_parameters.rope_type == "yarn"


def test_tiny_model_is_the_real_architecture_in_small():
    config = read_model_file(TINY, vocab_size=338)
    assert config.vocab_size == 338
    assert (config.num_hidden_layers, config.hidden_size, config.n_routed_experts) == (3, 128, 32)
    assert 2_400_000 < config.num_parameters() < 2_800_000


def test_checkpoint_is_made_from_seed_and_tokenizer(tmp_path):
    tokenizer = tmp_path / "tekken.json"
    tokenizer.write_text(json.dumps({"config": {"default_vocab_size": 300}}))
    out = init_checkpoint(TINY, tmp_path / "a", seed=7, tokenizer_file=tokenizer)
    init_checkpoint(TINY, tmp_path / "b", seed=7, tokenizer_file=tokenizer)
    init_checkpoint(TINY, tmp_path / "c", seed=8, tokenizer_file=tokenizer)
    model = load_model(out, dtype=torch.float32)
    assert model.config.vocab_size == 300
    assert (out / "tekken.json").read_bytes() == tokenizer.read_bytes()
    assert model.lm_head.weight.std().item() == pytest.approx(model.config.initializer_range, rel=0.05)
    assert torch.equal(model.model.norm.weight, torch.ones(128))
    assert base_fingerprint(out) == base_fingerprint(tmp_path / "b") != base_fingerprint(tmp_path / "c")
    with pytest.raises(StorageError, match="holds"):
        init_checkpoint(TINY, out, seed=7, tokenizer_file=None)


@pytest.mark.parametrize(
    ("line", "replacement", "key"),
    [
        ("hidden_size: 128", "hidden_size: wide", "hidden_size"),
        ("hidden_size: 128", "hiden_size: 128", "hiden_size"),
        ("n_routed_experts: 32", "n_routed_experts: 3", "num_experts_per_tok"),
        ("vocab_size: 512", "# vocab_size:", "vocab_size"),
        ("  factor: 128.0", "  factor: -1", "rope_parameters.factor"),
        ("qk_rope_head_dim: ", "qk_rope_head_dim: 1  # ", "qk_rope_head_dim"),
        ("num_hidden_layers: 3", "num_hidden_layers: 1000000000", "num_hidden_layers"),
        ("  rope_theta: 10000.0", "  rope_theta: 0.5", "rope_parameters.rope_theta"),
    ],
)
def test_faults_of_a_model_file_name_its_key_and_line(tmp_path, line, replacement, key):
    text = TINY.read_text()
    assert line in text
    file = tmp_path / "model.yaml"
    file.write_text(text.replace(line, replacement))
    with pytest.raises(ConfigError) as caught:
        read_model_file(file)
    assert key in str(caught.value)
    assert "Fix:" in str(caught.value)
    assert str(file) in str(caught.value)
    assert key == "vocab_size" or ":" in str(caught.value).split(str(file))[1][:2]


def test_tokenizer_without_size_is_refused(tmp_path):
    for number, content in enumerate(["[]", "{}", '{"config": {"default_vocab_size": true}}']):
        file = tmp_path / f"tekken{number}.json"
        file.write_text(content)
        with pytest.raises(TokenizerError, match="does not say its size"):
            tokenizer_size(file)
