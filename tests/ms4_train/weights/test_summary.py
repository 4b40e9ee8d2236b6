"""Counts against the published ones and against transformers."""

import pytest
import torch
from support.checkpoints import rewrite, saved_tiny
from support.models import tiny_config

from ms4_train.errors import MS4Error
from ms4_train.model import TextConfig
from ms4_train.weights.summary import active_parameters, summarise


def test_release_has_its_published_active_parameters():
    assert active_parameters(TextConfig()) == pytest.approx(6.633e9, rel=1e-3)
    dense = tiny_config(num_experts_per_tok=8)
    assert active_parameters(dense) == dense.num_parameters()


def test_summary_agrees_with_the_file(tmp_path):
    saved_tiny(tmp_path, dtype=torch.bfloat16, max_shard_bytes=100_000)
    summary = summarise(tmp_path)
    assert summary.parameters * 2 == summary.num_bytes
    assert (summary.dtype, summary.layout, summary.vision_tensors, summary.has_tokenizer) == ("bfloat16", "Hugging Face, text", 0, False)
    assert summary.files == len(list(tmp_path.glob("*.safetensors")))


def test_unfit_checkpoint_is_refused(tmp_path):
    saved_tiny(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(MS4Error, match=r"lm_head\.weight"):
        summarise(tmp_path)
