"""Weights in bf16, FP8 and NVFP4 against the modules with the same values in fp32; pools in bf16 and fp8 against torch's own rounding."""

from __future__ import annotations

import copy

import pytest
import torch
from support.models import tiny_config, tiny_model
from support.network_weights import make_pools, network_weights
from support.quantised_models import KINDS, dequantised_twin, quantised_tiny

from ms4_kernels.native import library, why_not
from ms4_kernels.step import NetworkStep
from ms4_train.model.cache import DenseLatentCache
from ms4_train.model.layout import SequenceLayout

pytestmark = pytest.mark.skipif(library() is None, reason=why_not() or "no library")

LENGTHS, TABLES = [70, 9], [range(10, 20), [0, 1]]
# Weights are widened to exactly the twin's, so this is fp32 against fp64 as in test_interface.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def compare(model, twin):
    embedding_td = torch.randn(79, model.config.hidden_size)
    step = NetworkStep(network_weights(model), make_pools(model, 20, 8), 8)
    hidden_td = step.run(embedding_td, LENGTHS, [0, 0], TABLES, [-1, -1], range(79))
    expected_td = twin.double().model(embedding_td.double(), SequenceLayout.from_lengths(LENGTHS))
    torch.testing.assert_close(hidden_td.double(), expected_td, **CLOSE)
    torch.testing.assert_close(step.logits(hidden_td, [-1] * 79).double(), twin.logits(expected_td), **CLOSE)


@pytest.mark.parametrize("overrides", [{}, {"hidden_size": 61, "moe_intermediate_size": 27, "kv_lora_rank": 19}], ids=["even", "odd"])
@torch.inference_mode()
def test_bf16_weights(overrides):
    model = tiny_model(tiny_config(**overrides), dtype=torch.bfloat16)
    compare(model, copy.deepcopy(model))


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_quantised_weights(kind):
    # 288 inputs are 18 blocks of NVFP4, more than one vector of scales and no whole number of them
    model = quantised_tiny(kind, tiny_config(hidden_size=288))
    compare(model, dequantised_twin(model))


@torch.inference_mode()
def test_fp8_weights_of_odd_widths():
    model = quantised_tiny("fp8", tiny_config(hidden_size=61, moe_intermediate_size=27, kv_lora_rank=19))
    compare(model, dequantised_twin(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
@torch.inference_mode()
def test_latents_are_rounded_as_torch_rounds(dtype):
    model = tiny_model()
    with torch.no_grad():  # some below the smallest normal fp8 number, some beyond the largest
        model.model.layers[0].self_attn.kv_a_layernorm.weight.copy_(torch.logspace(-4, 3.3, 16))
    embedding_td = torch.randn(79, 64)
    wide, narrow = make_pools(model, 20, 8), make_pools(model, 20, 8, dtype)
    for pools in (wide, narrow):
        NetworkStep(network_weights(model), pools, 8).run(embedding_td, LENGTHS, [0, 0], TABLES, [-1, -1], [0])
    # The first layer's latents do not depend on what attention read. Only tokens that were written are compared.
    written = torch.cat((wide[0][10:18].flatten(0, 1), wide[0][:1].flatten(0, 1)))
    stored = torch.cat((narrow[0].view(torch.uint8)[10:18].flatten(0, 1), narrow[0].view(torch.uint8)[:1].flatten(0, 1)))
    limit = 448.0 if dtype == torch.float8_e4m3fn else torch.inf
    assert (written.abs() > 448).any()
    assert (written.abs() < 2**-7).any()
    assert torch.equal(written.clamp(-limit, limit).to(dtype).view(torch.uint8), stored)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
@torch.inference_mode()
def test_attention_reads_what_the_pool_stores(dtype):
    model = tiny_model(tiny_config(num_hidden_layers=1))
    embedding_td = torch.randn(31, 64)
    step = NetworkStep(network_weights(model), make_pools(model, 20, 8, dtype), 8)
    hidden_rd = step.run(embedding_td, [31], [0], [[3, 2, 1, 4]], [-1], [30])
    distances = []
    for stored in (dtype, torch.float32):
        cache = DenseLatentCache(model.config, slots=1, max_len=32, dtype=stored)
        model.model(embedding_td[:30], SequenceLayout((30,), slots=(0,)), cache)
        expected_rd = model.model(embedding_td[30:], SequenceLayout((1,), (30,), (0,)), cache)
        distances.append(float((hidden_rd - expected_rd).abs().max()))
    assert distances[0] <= 1e-5  # as in CLOSE: both compute the latents in fp32, and none lies that near to a tie
    assert distances[1] > 1e-4  # control: latents that are not rounded
