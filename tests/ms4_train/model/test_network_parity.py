"""The whole network against transformers' Mistral4ForCausalLM with the same weights: logits, gradients, greedy text.

Tolerances are those of the acceptance: logits 1e-4, each gradient 1e-3, relative to the largest value; measured errors are near 1e-6.
Weights are drawn so that logits spread over several units and attention is far from uniform: a wrong scale cannot hide.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.models import hf_twin, tiny_config, tiny_model

from ms4_train.model import DenseLatentCache, RopeParameters, SequenceLayout

SHORT_ROPE = RopeParameters(factor=16.0, original_max_position_embeddings=32, max_position_embeddings=512)  # texts here cross 32
CONFIGS = {
    "small": tiny_config(softmax_scale="mscale", rope_parameters=SHORT_ROPE),
    "128 experts": tiny_config(
        softmax_scale="mscale", n_routed_experts=128, num_experts_per_tok=4, moe_intermediate_size=16, rope_parameters=SHORT_ROPE
    ),
    "odd widths": tiny_config(
        softmax_scale="mscale",
        hidden_size=52,
        vocab_size=301,
        num_attention_heads=3,
        q_lora_rank=70,
        kv_lora_rank=10,
        qk_nope_head_dim=6,
        qk_rope_head_dim=10,
        v_head_dim=7,
        rms_norm_eps=1e-5,
        rope_parameters=SHORT_ROPE,
    ),
    "other router": tiny_config(
        softmax_scale="mscale",
        n_routed_experts=5,
        num_experts_per_tok=1,
        n_shared_experts=2,
        norm_topk_prob=False,
        routed_scaling_factor=2.5,
        rope_parameters=SHORT_ROPE,
    ),
    "other yarn": tiny_config(
        softmax_scale="mscale",
        num_hidden_layers=3,
        qk_rope_head_dim=32,
        rope_parameters=RopeParameters(
            rope_theta=500.0,
            factor=64.0,
            original_max_position_embeddings=20,
            beta_fast=8.0,
            beta_slow=0.5,
            mscale=0.8,
            mscale_all_dim=0.6,
            llama_4_scaling_beta=0.3,
        ),
    ),
}


@pytest.fixture(params=CONFIGS)
def twins(request):
    model = tiny_model(CONFIGS[request.param])
    return model, hf_twin(model)


def relative(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def random_ids(model, *shape):
    return torch.randint(20, model.config.vocab_size, shape)


def our_logits(model, ids_t, lengths=None):
    return model.logits(model(ids_t, SequenceLayout(lengths or (len(ids_t),))))


def assert_gradients_equal(model, oracle):
    theirs = dict(oracle.named_parameters())
    for name, parameter in model.named_parameters():
        assert relative(parameter.grad, theirs[name].grad) < 1e-3, name


def test_logits_and_gradients(twins):
    model, oracle = twins
    ids_bs = random_ids(model, 2, 90)
    logits_tv, expected_bsv = our_logits(model, ids_bs.flatten(), (90, 90)), oracle(ids_bs).logits
    assert expected_bsv.std() > 0.5
    assert relative(logits_tv, expected_bsv.flatten(0, 1)) < 1e-4
    F.cross_entropy(logits_tv.view_as(expected_bsv)[:, :-1].flatten(0, 1), ids_bs[:, 1:].flatten()).backward()
    F.cross_entropy(expected_bsv[:, :-1].flatten(0, 1), ids_bs[:, 1:].flatten()).backward()
    assert_gradients_equal(model, oracle)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches(twins, side):
    model, oracle = twins
    lengths, longest = (7, 61, 40), 61
    mask_bs = torch.stack([torch.arange(longest) < length for length in lengths])
    mask_bs = mask_bs.flip(1) if side == "left" else mask_bs
    ids_bs = torch.where(mask_bs, random_ids(model, 3, longest), 0)
    position_bs = (mask_bs.cumsum(1) - 1).clamp(min=0)  # transformers takes positions from its caller; ours come from the layout

    layout = SequenceLayout.from_attention_mask(mask_bs)
    logits_tv = model.logits(model(ids_bs[mask_bs], layout))
    expected_tv = oracle(ids_bs, attention_mask=mask_bs.long(), position_ids=position_bs).logits[mask_bs]

    assert relative(logits_tv, expected_tv) < 1e-4
    weights_v = torch.linspace(-1, 1, model.config.vocab_size)
    for logits in (logits_tv, expected_tv):
        (logits.log_softmax(dim=-1) * weights_v).mean().backward()
    assert_gradients_equal(model, oracle)


@torch.no_grad()
def test_greedy_text_of_64_tokens(twins):
    """Theirs: generate on a left-padded batch. Ours: one prefill, then one absorbed step per token, through the latent cache."""
    model, oracle = twins
    prompts = [random_ids(model, 5), random_ids(model, 21)]
    padded = torch.stack([F.pad(prompt, (21 - len(prompt), 0)) for prompt in prompts])
    mask = torch.stack([F.pad(torch.ones_like(prompt), (21 - len(prompt), 0)) for prompt in prompts])
    oracle.generation_config.eos_token_id = None
    oracle.generation_config.pad_token_id = 0
    expected = oracle.generate(padded, attention_mask=mask, do_sample=False, max_new_tokens=64)[:, 21:]

    cache = DenseLatentCache(model.config, slots=2, max_len=21 + 64)
    layout = SequenceLayout(tuple(len(prompt) for prompt in prompts), slots=(0, 1))
    model.prepare_decode()
    hidden_td = model(torch.cat(prompts), layout, cache)[layout.cu_seqlens_b[1:] - 1]
    tokens = [model.logits(hidden_td).argmax(dim=-1)]
    for _ in range(63):
        layout = SequenceLayout((1, 1), layout.stops, (0, 1))
        tokens.append(model.logits(model(tokens[-1], layout, cache)).argmax(dim=-1))
    assert torch.stack(tokens, dim=1).tolist() == expected.tolist()


@torch.no_grad()
def test_plain_scale_equals_transformers_told_to_leave_mscale_out():
    """The checkpoint's own scale (specification 0.1): mscale_all_dim 0 with attention_factor 1. Each half alone is wrong."""
    rope = RopeParameters(factor=128.0, original_max_position_embeddings=32)
    model = tiny_model(tiny_config(softmax_scale="plain", rope_parameters=rope))
    ids_bs = random_ids(model, 1, 90)
    logits_tv = our_logits(model, ids_bs[0])

    def difference(**rope_overrides):
        return relative(logits_tv, hf_twin(model, **rope_overrides)(ids_bs).logits[0])

    assert difference(mscale_all_dim=0.0, attention_factor=1.0) < 1e-4
    assert difference(mscale_all_dim=1.0, attention_factor=None) > 1e-2
    assert difference(mscale_all_dim=1.0, attention_factor=1.0) > 1e-2
    assert difference(mscale_all_dim=0.0, attention_factor=None) > 1e-2


@torch.no_grad()
def test_the_boundary_of_the_query_scale_is_in_these_texts():
    """Without the scale the logits would move: the tests above do cover it."""
    model = tiny_model(CONFIGS["small"])
    ids_bs = random_ids(model, 1, 90)
    logits_tv = our_logits(model, ids_bs[0])
    unscaled_tv = hf_twin(model, llama_4_scaling_beta=0.0)(ids_bs).logits[0]
    assert relative(logits_tv[:32], unscaled_tv[:32]) < 1e-4
    assert relative(logits_tv[32:], unscaled_tv[32:]) > 1e-3
