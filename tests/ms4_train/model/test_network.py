"""The network as a whole: names and shapes, packing, checkpointing, counters; parity with transformers is in test_network_parity."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.models import hf_config, tiny_config, tiny_model

from ms4_train.model import DenseLatentCache, Mistral4ForCausalLM, RopeParameters, SequenceLayout, TextConfig

LENGTHS = (17, 5, 70, 1, 33, 90)
CONFIG = tiny_config(rope_parameters=RopeParameters(factor=8.0, original_max_position_embeddings=32))


def next_token_loss(model, ids_t, lengths, trained_lengths=None):
    """Return the summed loss of each next token inside the documents of ``trained_lengths``."""
    logits_tv = model.logits(model(ids_t, SequenceLayout(lengths)))
    pairs = zip(logits_tv.split(trained_lengths or lengths), ids_t.split(trained_lengths or lengths), strict=True)
    return sum(F.cross_entropy(logits[:-1], ids[1:], reduction="sum") for logits, ids in pairs if len(ids) > 1)


def loss_and_grads(model, loss):
    model.zero_grad()
    loss.backward()
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def relative(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def test_release_has_transformers_names_shapes_and_number():
    from transformers import Mistral4ForCausalLM as Oracle

    with torch.device("meta"):
        ours = Mistral4ForCausalLM(TextConfig()).state_dict()
        theirs = Oracle(hf_config(TextConfig())).state_dict()
    assert {name: tuple(x.shape) for name, x in ours.items()} == {name: tuple(x.shape) for name, x in theirs.items()}
    assert sum(x.numel() for x in ours.values()) == 118_972_826_624


def test_number_of_parameters_of_a_small_model():
    model = tiny_model()
    assert sum(parameter.numel() for parameter in model.parameters()) == model.config.num_parameters()


def test_packed_documents_train_like_documents_alone():
    model = tiny_model(CONFIG)
    ids_t = torch.randint(0, 512, (sum(LENGTHS),))
    packed, packed_grads = loss_and_grads(model, next_token_loss(model, ids_t, LENGTHS))
    alone, alone_grads = loss_and_grads(
        model, sum(next_token_loss(model, ids, (len(ids),)) for ids in ids_t.split(LENGTHS) if len(ids) > 1)
    )
    assert relative(packed, alone) < 1e-5
    assert max(relative(packed_grads[name], alone_grads[name]) for name in alone_grads) < 1e-5

    merged, merged_grads = loss_and_grads(model, next_token_loss(model, ids_t, (sum(LENGTHS),), LENGTHS))
    assert relative(merged, alone) > 1e-3  # the boundaries are what makes them equal
    assert min(relative(merged_grads[name], alone_grads[name]) for name in alone_grads) > 1e-3


@pytest.mark.parametrize(("option", "most"), [("gradient_checkpointing", 0.1), ("recompute_experts", 0.95)])
def test_computing_again_changes_memory_only(option, most):
    model = tiny_model(CONFIG).train()
    ids_t = torch.randint(0, 512, (sum(LENGTHS),))
    saved_bytes, results = [], []
    for enabled in (False, True):
        setattr(model, option, enabled)
        assert getattr(model, option) == enabled
        sizes: list[int] = []

        def keep(x, sizes=sizes):
            sizes.append(x.numel() * x.element_size())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            hidden_td = model(ids_t, SequenceLayout(LENGTHS))
        saved_bytes.append(sum(sizes))
        results.append(loss_and_grads(model, model.logits(hidden_td).square().mean()))
    assert saved_bytes[1] < most * saved_bytes[0]
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in results[0][1])


def test_expert_counts_cover_every_token_of_the_last_forward():
    model = tiny_model(CONFIG)
    with pytest.raises(RuntimeError, match="no forward"):
        model.expert_counts()
    for tokens in (40, 9):
        model(torch.randint(0, 512, (tokens,)), SequenceLayout((tokens,)))
        counts = model.expert_counts()
        assert [int(counts_e.sum()) for counts_e in counts] == [tokens * CONFIG.num_experts_per_tok] * CONFIG.num_hidden_layers
        assert all(counts_e.shape == (CONFIG.n_routed_experts,) and counts_e.dtype == torch.int64 for counts_e in counts)


def test_training_mode_drops_the_decode_matrices():
    model = tiny_model(CONFIG)
    cache = DenseLatentCache(CONFIG, slots=1, max_len=8)
    ids_t = torch.randint(0, 512, (5,))
    step = SequenceLayout((1,), (4,), (0,))
    with torch.no_grad():
        model(ids_t[:4], SequenceLayout((4,), slots=(0,)), cache)
        model.prepare_decode(joins=True)
        assert model.is_prepared
        model.train()
        assert not model.is_prepared
        for layer in model.model.layers:
            for projection in (layer.self_attn.kv_b_proj, layer.self_attn.q_a_proj, layer.mlp.shared_experts.up_proj):  # type: ignore[union-attr]
                projection.weight.mul_(1.5)
        changed = model.eval()(ids_t[4:], step, cache)
        model.prepare_decode()
        torch.testing.assert_close(model(ids_t[4:], step, cache), changed, rtol=1e-5, atol=1e-5)


def test_bf16_model_runs_in_bf16_with_fp32_logits():
    model, reference = tiny_model(CONFIG, dtype=torch.bfloat16), tiny_model(CONFIG)
    ids_t = torch.randint(0, 512, (20,))
    hidden_td = model(ids_t, SequenceLayout((20,)))
    logits_tv = model.logits(hidden_td)
    assert (hidden_td.dtype, logits_tv.dtype) == (torch.bfloat16, torch.float32)
    expected_tv = reference.logits(reference(ids_t, SequenceLayout((20,))))
    assert ((logits_tv - expected_tv).norm() / expected_tv.norm()).item() < 0.1  # bf16 weights and a few flipped experts


def test_layout_must_fit_the_tokens():
    with pytest.raises(ValueError, match="layout of 5 tokens for 4"):
        tiny_model()(torch.zeros(4, dtype=torch.int64), SequenceLayout((5,)))


def test_embeddings_may_come_from_elsewhere():
    model = tiny_model()
    ids_t = torch.randint(0, 512, (6,))
    embedding_td = model.model.embed_tokens(ids_t)
    assert torch.equal(model.model(embedding_td, SequenceLayout((6,))), model(ids_t, SequenceLayout((6,))))
