"""Real CUDA graphs against the same steps without them. ``make test-gpu`` runs it; elsewhere it is left out, saying so."""

from __future__ import annotations

import pytest
import torch
from support.checkpoints import randomise
from support.gpu import no_host_wait
from support.models import tiny_config, tiny_model
from support.quantised_models import quantised_tiny
from support.steps import Feeder, hidden_in_steps, paged_cache

from ms4_train.adapters import adapter_tensors, attach
from ms4_train.config.schema import AdapterSection
from ms4_train.inference.module_runner import ModuleRunner
from ms4_train.model import RopeParameters, SequenceLayout

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CONFIG = tiny_config(
    qk_nope_head_dim=16,
    qk_rope_head_dim=16,
    v_head_dim=32,
    kv_lora_rank=32,
    rope_parameters=RopeParameters(factor=8.0, original_max_position_embeddings=16),
)
LENGTHS = (1, 5, 17, 8, 7, 30, 2, 3, 9)


def both(model, dtype=torch.float32, **options):
    """(runner, feeder) with graphs, and without."""
    found = []
    for graphs in (True, False):
        cache = paged_cache(model, dtype=dtype)
        runner = ModuleRunner(model, cache, **options)
        assert runner._graphs is not None
        runner._graphs = runner._graphs if graphs else None
        runner.open()
        found.append((runner, Feeder(cache)))
    return found


def draw(count, generator=torch.Generator().manual_seed(4)):  # noqa: B008 - one stream of numbers
    return torch.randint(0, 512, (count,), generator=generator).tolist()


def model_of(kind):
    if kind == "fp8 weights":
        return quantised_tiny("fp8", CONFIG, dtype=torch.bfloat16).to("cuda")
    model = tiny_model(CONFIG, dtype=torch.float32 if kind == "fp32" else torch.bfloat16).to("cuda")
    if kind == "adapter":
        attach(model, AdapterSection(r=4, target_modules=["q_a_proj", "kv_b_proj"], target_parameters=["experts.gate_up_proj"]))
        randomise(adapter_tensors(model))
    return model


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("kind", ["fp32", "bf16", "adapter", "fp8 weights"])
def test_replays_equal_plain_steps(kind, deterministic):
    model = model_of(kind)
    runners = both(model, torch.bfloat16 if kind != "fp32" else torch.float32, deterministic=deterministic)
    prompts = {str(number): draw(length) for number, length in enumerate(LENGTHS)}
    for runner, feeder in runners:
        runner.run([feeder.piece(name, ids) for name, ids in prompts.items()])
    for names in ("012345678", "01234567", "257", "5", "876543210", "012"):
        tokens = {name: draw(1) for name in names}
        actual, expected = (runner.run([feeder.piece(name, ids) for name, ids in tokens.items()]) for runner, feeder in runners)
        if deterministic:  # padding is company, which changes nothing
            assert torch.equal(actual, expected)
        else:  # other shapes of products: the last digits of the type, through two layers
            error = ((actual - expected).float().norm() / expected.float().norm()).item()
            assert error < (1e-5 if kind == "fp32" else 0.02)
    assert sorted(runners[0][0]._graphs._replays) == [1, 4, 8, 16]


def test_a_replay_waits_for_nothing():
    """But for copying tokens in, which comes from pageable memory."""
    (runner, feeder), _ = both(model_of("bf16"), torch.bfloat16)
    for _ in range(3):
        runner.run([feeder.piece(name, draw(1)) for name in "ab"])
    replay = runner._graphs._replays[2]
    with no_host_wait():
        replay()


def test_hidden_states_equal_the_cpus():
    ids = {"a": draw(21), "b": draw(1), "c": draw(9)}
    model = tiny_model(CONFIG)
    with torch.no_grad():
        expected = {name: model(torch.tensor(tokens), SequenceLayout.from_lengths([len(tokens)])) for name, tokens in ids.items()}
    (runner, feeder), _ = both(model.to("cuda"))
    actual = hidden_in_steps(runner, feeder, ids, [{"a": 10, "b": 1}, {"a": 4, "c": 5}])
    for name in ids:
        torch.testing.assert_close(actual[name].cpu(), expected[name], rtol=1e-4, atol=1e-4)  # fp32 sums in another order; no TF32
