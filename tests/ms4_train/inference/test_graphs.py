"""Recorded decode steps with a recorder that keeps the computation instead of a graph: buffers, padding and sizes are the real ones."""

from __future__ import annotations

import pytest
import torch
from support.models import tiny_config, tiny_model
from support.steps import Feeder, paged_cache

from ms4_train.inference.graphs import BATCH_SIZES, DecodeGraphs
from ms4_train.inference.module_runner import ModuleRunner
from ms4_train.inference.step import ImagePlaces, StepPiece
from ms4_train.model import Mistral4ForCausalLM, RopeParameters
from ms4_train.model import attention as attention_module
from ms4_train.model import moe as moe_module
from ms4_train.model.plan import AttentionPlan

CONFIG = tiny_config(rope_parameters=RopeParameters(factor=8.0, original_max_position_embeddings=16))
# fp32; padding changes how many rows a product has, and with it the order of its sums.
EXACT = {"rtol": 1e-5, "atol": 2e-5}


class Recorder:
    """Replays by computing again on the same memory; counts both."""

    def __init__(self):
        self.recorded, self.replayed = 0, 0

    def __call__(self, compute):
        self.recorded += 1
        result = compute()  # as recording runs it

        def replay():
            self.replayed += 1
            result.copy_(compute())
            return result

        return replay


def frozen(compute):
    """A recording that does not read its inputs again."""
    result = compute()
    return lambda: result


class Pair:
    """The same sequences in two runners, one of which records."""

    def __init__(self, lengths, recorder):
        model = tiny_model(CONFIG)
        self.generator = torch.Generator().manual_seed(3)
        self.caches = [paged_cache(model) for _ in range(2)]
        self.feeders = [Feeder(cache) for cache in self.caches]
        self.runners = [ModuleRunner(model, cache, recorder=given) for cache, given in zip(self.caches, (recorder, None), strict=True)]
        for runner in self.runners:
            runner.open()
        self.step({str(number): self.draw(length) for number, length in enumerate(lengths)})

    def draw(self, count=1):
        return torch.randint(0, 512, (count,), generator=self.generator).tolist()

    def step(self, tokens, wanted=None):
        return [
            runner.run([feeder.piece(name, ids, wanted) for name, ids in tokens.items()])
            for runner, feeder in zip(self.runners, self.feeders, strict=True)
        ]


def test_replays_of_ragged_batches_equal_plain_steps():
    """Batches of 9, 8, 3, 1 and 9 again, past the boundary of the query scale, with blocks that fill up on the way."""
    recorder = Recorder()
    pair = Pair((1, 5, 17, 8, 7, 30, 2, 3, 9), recorder)
    assert recorder.recorded == 0  # prompts are not recorded
    for names in ("012345678", "01234567", "257", "5", "876543210", "012"):
        actual, expected = pair.step({name: pair.draw() for name in names})
        torch.testing.assert_close(actual, expected, **EXACT)
    for mine, theirs in zip(pair.caches[0].pools, pair.caches[1].pools, strict=True):
        torch.testing.assert_close(mine, theirs, equal_nan=True, **EXACT)  # NaN: nothing but the tokens was written
    assert (recorder.recorded, recorder.replayed) == (4, 6)  # of sizes 16, 8, 4 and 1


def test_the_comparison_notices_inputs_that_are_not_read_again():
    pair = Pair((4, 6), frozen)
    for expect in (True, False):
        actual, expected = pair.step({name: pair.draw() for name in "01"})
        assert torch.allclose(actual, expected, **EXACT) == expect


def test_the_comparison_notices_padding_that_is_written(monkeypatch):
    fill = DecodeGraphs._fill

    def padded_with_zeros(self, pieces, size):
        fill(self, pieces, size)
        self._position_b.clamp_(min=0)

    monkeypatch.setattr(DecodeGraphs, "_fill", padded_with_zeros)
    pair = Pair((4, 6, 8), Recorder())
    pair.step({name: pair.draw() for name in "012"})
    assert not all(
        torch.allclose(mine, theirs, equal_nan=True, **EXACT) for mine, theirs in zip(*(c.pools for c in pair.caches), strict=True)
    )


def test_only_wanted_rows_come_back_and_they_are_copies():
    pair = Pair((4, 6, 5), Recorder())
    first = pair.step({name: pair.draw() for name in "012"})[0]
    before = first.clone()
    assert pair.step({name: pair.draw() for name in "012"}, wanted=[])[0].shape == (0, 64)
    assert torch.equal(first, before)


def test_new_matrices_are_recorded_anew():
    recorder = Recorder()
    pair = Pair((4, 6), recorder)
    pair.step({name: pair.draw() for name in "01"})
    pair.runners[0]._model.release_decode()  # as whoever changes adapters does
    actual, expected = pair.step({name: pair.draw() for name in "01"})
    torch.testing.assert_close(actual, expected, **EXACT)
    assert recorder.recorded == 2


@pytest.mark.parametrize(
    ("piece", "served"),
    [
        (StepPiece([1], 4, [0]), True),
        (StepPiece([1], 0, [0]), False),
        (StepPiece([1, 2], 4, [0]), False),
        (StepPiece([1], 4, [0], adapter="x"), False),
        (StepPiece([1], 4, [0], images=ImagePlaces((0,), torch.zeros(1, 64))), False),
    ],
    ids=["token", "prompt", "piece of a prompt", "adapter", "image"],
)
def test_single_tokens_of_the_model_as_it_stands_are_served(piece, served):
    graphs = DecodeGraphs(lambda *inputs: inputs[0], lambda compute: compute, torch.device("cpu"), 4)
    assert graphs.serves([piece]) == served
    assert graphs.serves([StepPiece([1], 4, [0]), piece]) == served
    assert not graphs.serves([])
    assert not graphs.serves([StepPiece([1], 4, [0])] * (BATCH_SIZES[-1] + 1))


def test_more_blocks_than_a_sequence_can_have_are_refused():
    graphs = DecodeGraphs(lambda *inputs: inputs[0], lambda compute: compute, torch.device("cpu"), 2)
    with pytest.raises(ValueError, match="3 blocks of one sequence, at most 2"):
        graphs.run([StepPiece([1], 9, [0, 1, 2])])


def record_on_meta(monkeypatch):
    """A decode step on tensors without values, the kernels replaced by the shapes of their results."""
    monkeypatch.setattr(attention_module, "write_latents", lambda pool_nsm, latent_tm, slot_t: None)
    monkeypatch.setattr(
        attention_module, "latent_attention", lambda query_thm, pool_nsm, plan, *, scale, latent_rank: query_thm[..., :latent_rank]
    )
    monkeypatch.setattr(moe_module, "experts", lambda hidden_td, *others, **options: hidden_td)
    monkeypatch.setattr(moe_module, "route", lambda logits_te, top_k, *others: (logits_te[:, :top_k], logits_te[:, :top_k].to(torch.int64)))
    with torch.device("meta"), torch.inference_mode():
        model = Mistral4ForCausalLM(CONFIG).eval()
        cache = paged_cache(model)
        model.prepare_decode(joins=True)
        token_b, position_b, table_bj = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), torch.zeros(3, 4)
        plan = AttentionPlan.decode(table_bj, position_b, CONFIG, model.model.rotary, cache)
        return model.model(model.model.embed_tokens(token_b), plan, cache)


def test_what_is_recorded_reads_no_value_on_the_host(monkeypatch):
    """Tensors on "meta" have none: whatever would make the host wait for a device, and so break a recording, fails there. The kernels have
    such tests on a GPU (``no_host_wait``)."""
    assert record_on_meta(monkeypatch).shape == (3, 64)
    monkeypatch.setattr(moe_module, "_counts", lambda ids_tk, num_experts: torch.bincount(ids_tk.flatten(), minlength=num_experts))
    with pytest.raises(NotImplementedError, match="bincount"):  # as expert counts were made before
        record_on_meta(monkeypatch)
