"""A whole network in the mode: what a token becomes has the same bits alone, in a batch of seven, and in pieces; and the control."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.models import tiny_config, tiny_model

from ms4_kernels.invariant import batch_invariant
from ms4_train.adapters import attach
from ms4_train.config.schema import AdapterSection
from ms4_train.model import RopeParameters, SequenceLayout
from ms4_train.model.plan import AttentionPlan

LENGTHS = (67, 1, 9, 40, 3, 16, 80)
PAGE = 16
# Wide enough that products of 64 rows and more take other paths than those of few, outside the mode.
CONFIG = tiny_config(hidden_size=256, rope_parameters=RopeParameters(factor=8.0, original_max_position_embeddings=16))


@dataclasses.dataclass
class Pools:
    """A cache for one call after another; blocks of a sequence are its own."""

    pools: list[torch.Tensor]


def new_cache(dtype):
    return Pools([torch.full((40, PAGE, CONFIG.latent_dim), torch.nan, dtype=dtype) for _ in range(CONFIG.num_hidden_layers)])


def blocks_of(sequence):
    first = sum(-(-length // PAGE) for length in LENGTHS[:sequence])
    return tuple(range(first, first + -(-LENGTHS[sequence] // PAGE)))


def run(model, cache, ids, wanted):
    """One pass over parts (sequence, start, stop): hidden states [t, d] of all of them, in absorbed form; with logits behind."""
    layout = SequenceLayout(
        lengths=tuple(stop - start for _, start, stop in wanted),
        starts=tuple(start for _, start, _ in wanted),
        blocks=tuple(blocks_of(sequence) for sequence, _, _ in wanted),
    )
    network = model.model
    plan = AttentionPlan.build(layout, CONFIG, network.rotary, torch.device("cpu"), cache, expands=False)
    token_t = torch.cat([ids[sequence][start:stop] for sequence, start, stop in wanted])
    hidden_td = network(network.embed_tokens(token_t), plan, cache)
    return torch.cat((hidden_td.float(), model.logits(hidden_td).log_softmax(-1)), dim=-1)


def three_ways(model, dtype) -> list[torch.Tensor]:
    """What sequence 0 becomes: alone, among all seven, and in pieces beside parts of others."""
    ids = [torch.randint(0, CONFIG.vocab_size, (length,), generator=torch.Generator().manual_seed(n)) for n, length in enumerate(LENGTHS)]
    length = LENGTHS[0]
    alone = run(model, new_cache(dtype), ids, [(0, 0, length)])
    together = run(model, new_cache(dtype), ids, [(n, 0, LENGTHS[n]) for n in (3, 1, 6, 0, 2, 5, 4)])
    first = LENGTHS[3] + LENGTHS[1] + LENGTHS[6]
    cache, pieces = new_cache(dtype), []
    for start, stop in ((0, 1), (1, 34), (34, 35), (35, 67)):
        other = (3, start // 2, stop // 2 + 1)
        pieces.append(run(model, cache, ids, [other, (0, start, stop)])[other[2] - other[1] :])
    return [alone, together[first : first + length], torch.cat(pieces)]


def model_of(dtype, adapted):
    model = tiny_model(CONFIG, dtype=dtype)
    if adapted:
        attach(model, AdapterSection(r=4, target_parameters=["mlp.experts.gate_up_proj", "mlp.gate.weight"]))
        generator = torch.Generator().manual_seed(9)
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "adapted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_same_bits_alone_together_and_in_pieces(dtype, adapted):
    model = model_of(dtype, adapted)
    with torch.inference_mode(), batch_invariant():
        alone, together, pieces = three_ways(model, dtype)
    assert alone.isfinite().all()
    assert torch.equal(alone, together)
    assert torch.equal(alone, pieces)


@torch.inference_mode()
def test_control_without_the_mode_bits_differ():
    alone, _, pieces = three_ways(model_of(torch.float32, adapted=False), torch.float32)
    assert not torch.equal(alone, pieces)  # passes of few rows
    # But only bits: the same sums in another order.
    torch.testing.assert_close(pieces, alone, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_the_mode_computes_what_the_network_computes():
    model = model_of(torch.float32, adapted=True)
    plain = three_ways(model, torch.float32)[0]
    with batch_invariant():
        invariant = three_ways(model, torch.float32)[0]
    torch.testing.assert_close(invariant, plain, rtol=1e-3, atol=1e-3)
