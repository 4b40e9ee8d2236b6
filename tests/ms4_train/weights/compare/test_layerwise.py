"""The network from the disk, block by block, against the whole network in memory."""

import gc
import weakref

import pytest
import torch
from support.checkpoints import relative_error, saved_tiny, some_ids
from support.layouts import hf_folder, hf_fp8_folder, native_folder, native_fp8_folder, nvfp4_folder
from support.models import tiny_config

from ms4_train.model import SequenceLayout
from ms4_train.weights import load_model, open_checkpoint
from ms4_train.weights.compare import layerwise as module
from ms4_train.weights.compare.layerwise import HALVES, LayerwiseModel

FOLDERS = [hf_folder, native_folder, native_fp8_folder, hf_fp8_folder, nvfp4_folder]
LENGTHS = [17, 1, 30]
CLOSE = 1e-6  # fp32; an expert's rows are multiplied apart from those of the others, and a head of few rows sums in another order


def layerwise_logits(model, ids_t, layout):
    plan = model.plan(layout)
    hidden_td = model.embed(ids_t)
    for layer in range(model.config.num_hidden_layers):
        for half in HALVES:
            hidden_td = hidden_td + model.block(layer, half, hidden_td, plan)
    return torch.cat([logits_tv for _, logits_tv in model.logits(hidden_td)], dim=1)


@torch.no_grad()
def whole_logits(folder, ids_t, layout):
    model = load_model(folder, dtype=torch.float32).eval()
    return model.logits(model(ids_t, layout))


@pytest.mark.parametrize("make", FOLDERS, ids=lambda make: make.__name__)
def test_logits_equal_the_whole_network_in_every_layout(tmp_path, make, monkeypatch):
    make(tmp_path)
    ids_t, layout = some_ids(sum(LENGTHS)), SequenceLayout.from_lengths(LENGTHS)
    expected = whole_logits(tmp_path, ids_t, layout)
    model = LayerwiseModel(open_checkpoint(tmp_path))
    assert relative_error(layerwise_logits(model, ids_t, layout), expected) <= CLOSE
    monkeypatch.setattr(module, "HEAD_BYTES", 4 * 64 * 100)  # 100 rows, so the last chunk is a short one
    assert relative_error(layerwise_logits(model, ids_t, layout), expected) <= CLOSE


def test_past_the_context_of_the_rotary_table_and_with_the_other_scale(tmp_path):
    """Positions past original_max_position_embeddings (256) get the Llama-4 factor; the softmax scale comes from the configuration."""
    saved_tiny(tmp_path, tiny_config(softmax_scale="mscale"))
    ids_t, layout = some_ids(300), SequenceLayout.from_lengths([300])
    found = layerwise_logits(LayerwiseModel(open_checkpoint(tmp_path)), ids_t, layout)
    assert relative_error(found, whole_logits(tmp_path, ids_t, layout)) <= CLOSE


def test_only_what_tokens_need_is_read_and_nothing_is_kept(tmp_path, monkeypatch):
    native_folder(tmp_path)
    model = LayerwiseModel(open_checkpoint(tmp_path))
    reads, alive = [], weakref.WeakSet()
    plain_read = model.read

    def counted(name, rows=None):
        value = plain_read(name, rows)
        reads.append((name, rows))
        alive.add(value)
        return value

    monkeypatch.setattr(model, "read", counted)
    hidden_td = model.embed(torch.tensor([5, 9, 5]))
    assert torch.equal(hidden_td[0], hidden_td[2])
    assert reads == [("model.embed_tokens.weight", (5, 6)), ("model.embed_tokens.weight", (9, 10))]
    reads.clear()
    plan = model.plan(SequenceLayout.from_lengths([3]))
    model.block(1, "experts", hidden_td, plan)
    touched = {int(name.split(".")[5]) for name, _ in reads if ".experts." in name}
    assert {(1, expert) for expert in touched} == model.experts_reached
    assert 2 <= len(touched) <= 6  # three tokens, two experts each
    assert all(name.startswith("model.layers.1.") for name, _ in reads)
    gc.collect()
    assert not alive


def test_values_are_rounded_on_request(tmp_path):
    native_fp8_folder(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    names = [f"model.layers.0.self_attn.{name}.weight" for name in ("q_a_proj", "q_b_proj", "kv_b_proj", "o_proj")]
    rounded = [LayerwiseModel(checkpoint, lambda piece: torch.bfloat16).read(name) for name in names]
    plain = [LayerwiseModel(checkpoint).read(name) for name in names]
    for mine, exact in zip(rounded, plain, strict=True):
        assert mine.dtype == exact.dtype == torch.float32
        assert torch.equal(mine, exact.bfloat16().float())
    assert not all(torch.equal(mine, exact) for mine, exact in zip(rounded, plain, strict=True))  # a scale of few bits rounds nothing
