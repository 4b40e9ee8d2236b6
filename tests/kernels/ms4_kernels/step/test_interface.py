"""The compiled step against the network's modules in fp64 and transformers, over pools full of NaN; what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from support.models import hf_twin, tiny_config, tiny_model
from support.network_weights import make_pools, network_weights

from ms4_kernels.native import library, why_not
from ms4_kernels.step import NetworkStep, interface
from ms4_train.model.layout import SequenceLayout

pytestmark = pytest.mark.skipif(library() is None, reason=why_not() or "no library")

# fp32 sums of up to 64 terms in 2 layers: the same network by torch in fp32 is 3e-7 away from fp64, the step 2e-7.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
ODD = {  # no width is a multiple of a vector, or of a tile
    "hidden_size": 61,
    "moe_intermediate_size": 27,
    "num_attention_heads": 3,
    "q_lora_rank": 21,
    "kv_lora_rank": 19,
    "qk_nope_head_dim": 7,
    "qk_rope_head_dim": 6,
    "v_head_dim": 13,
    "n_routed_experts": 5,
}
CONFIGS = {
    "plain": {},
    "odd": ODD,
    "many heads": {"num_attention_heads": 70},
    "not renormalised": {"norm_topk_prob": False, "routed_scaling_factor": 2.5},
    "two shared experts": {"n_shared_experts": 2},
    "mscale": {"softmax_scale": "mscale"},
    "one layer": {"num_hidden_layers": 1},
}


@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_hidden_states_and_logits_equal_the_modules_in_fp64(name):
    model = tiny_model(tiny_config(**CONFIGS[name]))
    exact = copy.deepcopy(model).double()
    lengths, tables = [280, 3, 64], [range(40), [63], range(41, 51)]  # Llama 4's query scale begins at position 256
    embedding_td = torch.randn(sum(lengths), model.config.hidden_size)
    step = NetworkStep(network_weights(model), make_pools(model, 64, 7), 7)
    hidden_td = step.run(embedding_td, lengths, [0, 0, 0], tables, [-1] * 3, range(sum(lengths)))
    expected_td = exact.model(embedding_td.double(), SequenceLayout.from_lengths(lengths))
    torch.testing.assert_close(hidden_td.double(), expected_td, **CLOSE)
    torch.testing.assert_close(step.logits(hidden_td, [-1] * sum(lengths)).double(), exact.logits(expected_td), **CLOSE)


@torch.inference_mode()
def test_greedy_tokens_equal_transformers():
    model = tiny_model()
    prompt = torch.randint(0, 512, (1, 21))
    twin = hf_twin(model)
    expected = twin.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=None)[0, 21:].tolist()
    step = NetworkStep(network_weights(model), make_pools(model, 8, 8), 8)
    tokens, start, answer = prompt[0].tolist(), 0, []
    while len(answer) < 12:
        embedding_td = model.model.embed_tokens(torch.tensor(tokens))
        hidden_rd = step.run(embedding_td, [len(tokens)], [start], [[5, 1, 7, 2, 3]], [-1], [len(tokens) - 1])
        start += len(tokens)
        tokens = step.logits(hidden_rd, [-1]).argmax(-1).tolist()
        answer += tokens
    assert answer == expected


@torch.inference_mode()
def test_wanted_rows_are_the_rows_of_all():
    model = tiny_model()
    step = NetworkStep(network_weights(model), make_pools(model, 8, 8), 8)
    embedding_td = torch.randn(30, 64)
    arguments = (embedding_td, [20, 10], [0, 0], [[0, 1, 2], [4, 3]], [-1, -1])
    every_td = step.run(*arguments, range(30))
    assert torch.equal(step.run(*arguments, [4, 19, 29]), every_td[[4, 19, 29]])
    assert step.run(*arguments, []).shape == (0, 64)
    assert step.logits(every_td[:0], []).shape == (0, 512)


@torch.inference_mode()
def test_control_a_position_that_was_never_written_is_seen():
    model = tiny_model()
    step = NetworkStep(network_weights(model), make_pools(model, 8, 8), 8)
    embedding_td = torch.randn(3, 64)
    assert step.run(embedding_td, [3], [0], [[0]], [-1], range(3)).isfinite().all()
    assert step.run(embedding_td, [3], [1], [[1]], [-1], range(3)).isnan().all()  # position 0 is NaN, as the whole pool was


@torch.inference_mode()
def test_a_token_that_is_not_finite_spoils_no_earlier_one():
    model = tiny_model()
    step = NetworkStep(network_weights(model), make_pools(model, 8, 8), 8)
    embedding_td = torch.randn(40, 64)
    clean_td = step.run(embedding_td, [30, 10], [0, 0], [[0, 1, 2, 3], [4, 5]], [-1, -1], range(40))
    embedding_td[12, 3] = torch.nan
    hidden_td = step.run(embedding_td, [30, 10], [0, 0], [[0, 1, 2, 3], [4, 5]], [-1, -1], range(40))
    untouched = [row for row in range(40) if not 12 <= row < 30]
    assert torch.equal(hidden_td[untouched], clean_td[untouched])
    assert hidden_td[12:30].isnan().all()


@torch.inference_mode()
def test_long_steps_are_cut(monkeypatch):
    model = tiny_model()
    embedding_td = torch.randn(45, 64)
    arguments = (embedding_td, [20, 25], [0, 0], [[0, 1, 2], [4, 3, 5, 6]], [-1, -1], [0, 15, 16, 44])
    whole_rd = NetworkStep(network_weights(model), make_pools(model, 8, 8), 8).run(*arguments)
    monkeypatch.setattr(interface, "MOST_ROWS", 16)
    step = NetworkStep(network_weights(model), make_pools(model, 8, 8), 8)
    sizes = []
    run = step._run
    monkeypatch.setattr(step, "_run", lambda embedding_td, *others: (sizes.append(len(embedding_td)), run(embedding_td, *others)))
    assert torch.equal(step.run(*arguments), whole_rd)
    assert sizes == [16, 16, 13]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": [3, 3]}, "lengths and starts"),
        ({"lengths": [5, 0]}, "lengths and starts"),
        ({"starts": [0, -1]}, "lengths and starts"),
        ({"starts": [0, 15]}, "fewer blocks than tokens"),
        ({"tables": [[0], [8]]}, "outside the pools"),
        ({"tables": [[-1], [1]]}, "outside the pools"),
        ({"tables": [[0]]}, "equally many"),
        ({"wanted": [5]}, "wanted row"),
        ({"embedding": torch.zeros(5, 63)}, "expected plain fp32"),
        ({"embedding": torch.zeros(5, 64, dtype=torch.float64)}, "expected plain fp32"),
    ],
)
def test_impossible_arguments_are_refused(change, message):
    model = tiny_model()
    step = NetworkStep(network_weights(model), make_pools(model, 8, 8), 8)
    good = {"embedding": torch.zeros(5, 64), "lengths": [3, 2], "starts": [0, 0], "tables": [[0], [1]], "adapters": [-1, -1], "wanted": [4]}
    assert step.run(*good.values()).shape == (1, 64)
    with pytest.raises(ValueError, match=message):
        step.run(*(good | change).values())
