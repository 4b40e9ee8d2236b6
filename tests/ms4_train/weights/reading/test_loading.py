"""Checkpoints that transformers saved load here, and ours load there, with equal logits.

Tolerance 1e-5 of the largest logit: fp32 sums in another order; measured 4e-7. Other layouts: ``test_loading_layouts.py``.
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from support import layouts
from support.checkpoints import our_logits, relative_error, saved_tiny, their_logits, write_safetensors
from support.models import hf_twin, tiny_config, tiny_model

from ms4_train.errors import ConfigError, MS4Error
from ms4_train.model import Mistral4Experts
from ms4_train.weights.reading.loading import first_expert, load_model

CLOSE = 1e-5


@pytest.mark.parametrize("shard_size", ["5GB", "100KB"])
def test_checkpoint_saved_by_transformers_loads_with_equal_logits(tmp_path, shard_size):
    oracle = hf_twin(tiny_model(tiny_config(softmax_scale="mscale")))
    oracle.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_size == "100KB")
    model = load_model(tmp_path, dtype=torch.float32, softmax_scale="mscale")
    assert relative_error(our_logits(model), their_logits(oracle)) < CLOSE
    plain = load_model(tmp_path, dtype=torch.float32)
    assert relative_error(our_logits(plain), their_logits(oracle)) > 100 * CLOSE  # the switch matters


@pytest.mark.parametrize("scale", ["plain", "mscale"])
@pytest.mark.parametrize("max_shard_bytes", [5 << 30, 100_000])
def test_checkpoint_saved_here_loads_in_transformers_with_equal_logits(tmp_path, scale, max_shard_bytes):
    from transformers import Mistral4ForCausalLM as Oracle

    model = saved_tiny(tmp_path, tiny_config(softmax_scale=scale), max_shard_bytes=max_shard_bytes)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_bytes == 100_000)
    oracle, report = Oracle.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values())
    assert relative_error(our_logits(model), their_logits(oracle)) < CLOSE
    again = load_model(tmp_path, dtype=torch.float32)
    assert torch.equal(our_logits(again), our_logits(model))


@pytest.mark.parametrize("style", ["disk", "transformers"])
def test_text_part_of_a_multimodal_checkpoint_equals_transformers(tmp_path, style):
    from transformers import Mistral3ForConditionalGeneration

    layouts.hf_folder(tmp_path, style=style, dtype=torch.float32)
    oracle = Mistral3ForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    model = load_model(tmp_path, dtype=torch.float32, softmax_scale="mscale")  # transformers' reading of mscale_all_dim 1
    assert relative_error(our_logits(model), their_logits(oracle)) < CLOSE


def test_types_are_cast_and_memory_is_not_shared_with_the_file(tmp_path):
    model = saved_tiny(tmp_path, dtype=torch.bfloat16)
    loaded = load_model(tmp_path, dtype=torch.float32)
    for (name, ours), theirs in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert theirs.dtype == torch.float32, name
        assert torch.equal(theirs, ours.bfloat16().float()), name
        assert theirs.requires_grad
        assert not theirs.is_meta
    same = load_model(tmp_path, dtype=torch.bfloat16)
    tensors = load_file(tmp_path / "model.safetensors")
    write_safetensors(tmp_path / "other", {name: torch.zeros_like(value) for name, value in tensors.items()})
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "other").read_bytes())
    assert all(parameter.abs().sum() > 0 for parameter in same.parameters())


def test_part_of_the_experts_is_read(tmp_path):
    model = saved_tiny(tmp_path)
    part = load_model(tmp_path, dtype=torch.float32, expert_range=(6, 8))
    experts = [module for module in part.modules() if isinstance(module, Mistral4Experts)]
    whole = [module for module in model.modules() if isinstance(module, Mistral4Experts)]
    for mine, full in zip(experts, whole, strict=True):
        assert (mine.num_local_experts, first_expert(mine), first_expert(full)) == (2, 6, 0)
        assert torch.equal(mine.gate_up_proj, full.gate_up_proj[6:])
        assert torch.equal(mine.down_proj, full.down_proj[6:])
    assert torch.equal(part.lm_head.weight, model.lm_head.weight)


def test_checkpoint_of_another_size_is_refused(tmp_path):
    saved_tiny(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(MS4Error, match=r"model\.layers\.2\.") as caught:
        load_model(tmp_path, dtype=torch.float32)
    assert "missing" in str(caught.value)


def test_triton_where_it_cannot_run_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"model\.experts_backend: is triton, but torch sees no GPU here\. Fix: use auto"):
        load_model(tmp_path / "missing", dtype=torch.float32, experts_backend="triton")
