"""The runner over the modules: whatever a step holds, each sequence gets what a plain pass over it alone computes, and transformers too."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from support.checkpoints import randomise, relative_error
from support.models import hf_twin, tiny_config, tiny_model
from support.multimodal import IMG, cells_of, image_batch, random_pixels, sequence_ids, tiny_multimodal
from support.quantised_models import KINDS, dequantised_twin, quantised_tiny
from support.stay_home import StayHome
from support.steps import Feeder, greedy, hidden_in_steps, paged_cache

from ms4_train.adapters import adapter_tensors, attach
from ms4_train.adapters.several import set_active_adapters
from ms4_train.config.schema import AdapterSection
from ms4_train.inference.module_runner import ModuleRunner
from ms4_train.inference.step import ImagePlaces
from ms4_train.model import RopeParameters, SequenceLayout

CONFIG = tiny_config(rope_parameters=RopeParameters(factor=8.0, original_max_position_embeddings=16))  # the query scale acts from 16 on
LENGTHS = {"a": 21, "b": 1, "c": 9, "d": 40}
STEPS = {
    "whole prompts": [LENGTHS],
    "single tokens": [],
    "pieces in company": [{"a": 7, "b": 1}, {"d": 13, "a": 9}, {"c": 9, "a": 1, "d": 20}],
    "late arrivals": [{"d": 30}, {"d": 1, "c": 4}, {"d": 1, "c": 5, "a": 20, "b": 1}],
}
# fp32 through two layers, sums in another order; a token that saw a wrong position would be off by about 1.
EXACT = 2e-5


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


def random_ids(vocab_size=512):
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randint(0, vocab_size, (length,), generator=generator).tolist() for name, length in LENGTHS.items()}


def opened(model, *, dtype=torch.float32, **options):
    cache = paged_cache(model, dtype=dtype)
    runner = ModuleRunner(model, cache, **options)
    runner.open()
    return runner, Feeder(cache)


@torch.no_grad()
def plain(model, tokens):
    return model(torch.tensor(tokens), SequenceLayout.from_lengths([len(tokens)]))


@pytest.mark.parametrize("steps", STEPS)
def test_any_pieces_in_any_company_equal_one_pass_over_each(steps):
    model, ids = tiny_model(CONFIG), random_ids()
    runner, feeder = opened(model)
    actual = hidden_in_steps(runner, feeder, ids, STEPS[steps])
    runner.close()
    for name, tokens in ids.items():
        assert relative_error(actual[name], plain(model, tokens)) < EXACT, name


def test_logits_equal_transformers():
    model, ids = tiny_model(CONFIG), random_ids()
    runner, feeder = opened(model)
    hidden = hidden_in_steps(runner, feeder, ids, STEPS["pieces in company"])
    oracle = hf_twin(model)
    for name, tokens in ids.items():
        with torch.no_grad():
            expected_tv = oracle(torch.tensor([tokens])).logits[0]
        logits_tv = runner.logits(hidden[name], [None] * len(tokens))
        assert logits_tv.dtype == torch.float32
        assert relative_error(logits_tv, expected_tv) < 1e-4  # as in test_network_parity


def test_greedy_tokens_equal_recomputing(model, alone, prompts):
    runner, feeder = opened(model)
    named = {str(number): prompt for number, prompt in enumerate(prompts[:6])}
    found = greedy(runner, feeder, named, 8)
    runner.close()
    for name, prompt in named.items():
        assert found[name] == alone(prompt, 8)


def test_wanted_rows_come_in_the_order_of_the_pieces():
    """The runner computes them in another order: fresh prompts first."""
    model, ids = tiny_model(CONFIG), random_ids()
    runner, feeder = opened(model)
    assert runner.run([feeder.piece("a", ids["a"][:5], wanted=[])]).shape == (0, 64)
    pieces = [feeder.piece("a", ids["a"][5:9], wanted=[1, 3]), feeder.piece("c", ids["c"], wanted=[0, 8]), feeder.piece("b", ids["b"], [])]
    hidden_rd = runner.run(pieces)
    expected_rd = torch.cat((plain(model, ids["a"])[[6, 8]], plain(model, ids["c"])[[0, 8]]))
    assert relative_error(hidden_rd, expected_rd) < EXACT


@pytest.mark.parametrize(("dtype", "lowest", "bound"), [(torch.bfloat16, 1e-4, 0.02), (torch.float8_e4m3fn, 1e-3, 0.3)])
def test_narrow_pools_cost_their_rounding(dtype, lowest, bound):
    """bf16 keeps 8 bits of a value, e4m3 4: 0.4% and 6% of each latent at most, which two layers can raise a few times. Whole prompts read
    nothing from the pool. The lowest error shows that the pool is read at all, and in its type."""
    model, ids = tiny_model(CONFIG), random_ids()
    runner, feeder = opened(model, dtype=dtype)
    actual = hidden_in_steps(runner, feeder, ids, STEPS["pieces in company"])
    errors = {name: float((actual[name] - plain(model, tokens)).norm() / plain(model, tokens).norm()) for name, tokens in ids.items()}
    assert errors.pop("b") < EXACT
    assert lowest < min(errors[name] for name in "ad")
    assert max(errors.values()) < bound, errors


def test_a_wrong_block_is_far_out_of_every_tolerance():
    """Control of the bounds above."""
    model, ids = tiny_model(CONFIG), random_ids()
    runner, feeder = opened(model)
    runner.run([feeder.piece("a", ids["a"][:20]), feeder.piece("d", ids["d"])])
    piece, other = feeder.piece("a", ids["a"][20:]), feeder.piece("d", [1])
    wrong = type(piece)(piece.token_ids, piece.start, (other.blocks[0], *piece.blocks[1:]), piece.wanted)
    assert relative_error(runner.run([wrong]), plain(model, ids["a"])[20:]) > 0.3


def test_blocks_that_are_too_few_are_refused():
    runner, feeder = opened(tiny_model(CONFIG))
    piece = feeder.piece("a", list(range(9)))
    with pytest.raises(ValueError, match="9 tokens does not fit a cache of 8"):
        runner.run([type(piece)(piece.token_ids, 0, piece.blocks[:1], (8,))])


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_weights_give_the_hidden_states_of_their_values(kind):
    model, ids = quantised_tiny(kind, CONFIG), random_ids()
    runner, feeder = opened(model)
    actual = hidden_in_steps(runner, feeder, ids, STEPS["late arrivals"])
    twin = dequantised_twin(model)
    for name, tokens in ids.items():
        assert relative_error(actual[name], plain(twin, tokens)) < EXACT, name


def test_image_features_take_their_places_in_any_piece():
    model = tiny_multimodal(tiny_config(rope_parameters=CONFIG.rope_parameters))
    parts = (3, (1, 2), 4, (2, 2), 3)
    ids_t = sequence_ids(parts, model.config.vocab_size)
    images = image_batch(random_pixels(cells_of(parts), model.vision_config), model.vision_config)
    with torch.no_grad():
        expected_td = model(ids_t, SequenceLayout.from_lengths([len(ids_t)]), images=images)
    ids, other = ids_t.tolist(), random_ids()["c"]
    places = [place for place, token_id in enumerate(ids) if token_id == IMG]
    for cuts in ((0, len(ids)), (0, 4, 9, 12, len(ids))):  # inside both images
        runner, feeder = opened(model)
        features_nd = runner.image_features(images, None)
        found = []
        for first, stop in pairwise(cuts):
            inside = [place for place in places if first <= place < stop]
            given = ImagePlaces(tuple(place - first for place in inside), features_nd[[places.index(place) for place in inside]])
            company = [feeder.piece("other", other, wanted=[])] if first == 0 else [feeder.piece("other", [7], wanted=[])]
            found.append(runner.run([*company, feeder.piece("x", ids[first:stop], images=given if inside else None)]))
        assert relative_error(torch.cat(found), expected_td) < EXACT
    blind_td = runner.run([Feeder(paged_cache(model)).piece("x", ids)])  # control: the same tokens without their images
    assert relative_error(blind_td, expected_td) > 0.3


@pytest.mark.parametrize("named", [False, True], ids=["cut only", "in company"])
def test_deterministic_results_are_the_same_bits_however_cut_and_in_any_company(named):
    model, ids = tiny_model(CONFIG), random_ids()
    if not named:
        ids = {"a": ids["a"]}
    results, logits = [], []
    for steps in STEPS.values():
        runner, feeder = opened(model, deterministic=True)
        found = hidden_in_steps(runner, feeder, ids, [{name: step[name] for name in ids if name in step} for step in steps])
        results.append(found)
        logits.append(runner.logits(torch.cat(list(found.values())), [None] * sum(map(len, found.values()))))
        assert torch.equal(logits[-1][:1], runner.logits(found["a"][:1], [None]))  # alone, or in a batch
        runner.close()
    for other in results[1:]:
        assert all(torch.equal(other[name], results[0][name]) for name in ids)
    for name, tokens in ids.items():
        assert relative_error(results[0][name], plain(model, tokens)) < EXACT, name


def test_without_the_mode_bits_depend_on_the_company():
    model, ids = tiny_model(CONFIG), random_ids()
    results = []
    for steps in STEPS.values():
        runner, feeder = opened(model)
        results.append(hidden_in_steps(runner, feeder, ids, steps)["d"])
    assert not all(torch.equal(other, results[0]) for other in results[1:])


def test_rows_of_several_adapters_share_a_step():
    """Adapters everywhere, kv_b among them. Each row's oracle is a pass over its sequence with that adapter alone switched on; rows of no
    adapter see the model as it stands, with the active one."""
    model, ids = tiny_model(CONFIG), random_ids()
    settings = AdapterSection(
        r=3, target_modules=["q_a_proj", "kv_b_proj", "up_proj", "o_proj"], target_parameters=["experts.gate_up_proj"]
    )
    for number, name in enumerate(("red", "blue")):
        torch.manual_seed(number)
        attach(model, settings, name=name)
        randomise(adapter_tensors(model, name), seed=number)
    expected = {}
    for adapter, acting in (("red", ("red",)), ("blue", ("blue",)), ("off", ())):
        set_active_adapters(model, acting)
        expected[adapter] = {name: plain(model, tokens) for name, tokens in ids.items()}
    set_active_adapters(model, ("blue",))
    expected[None] = expected["blue"]

    rows = {"a": "red", "b": None, "c": "blue", "d": "red"}
    runner, feeder = opened(model)
    found = {name: [] for name in ids}
    for cut in (3, 9, 20, 40):
        pieces = {}
        for name, tokens in ids.items():
            done = sum(map(len, found[name]))
            if done < min(cut, len(tokens)):
                pieces[name] = feeder.piece(name, tokens[done:cut], adapter=rows[name])
        for name, part in zip(pieces, runner.run(list(pieces.values())).split([len(p.token_ids) for p in pieces.values()]), strict=True):
            found[name].append(part)
    for name, adapter in rows.items():
        actual_td = torch.cat(found[name])
        assert relative_error(actual_td, expected[adapter][name]) < EXACT, name
        assert relative_error(actual_td, expected["off"][name]) > 0.1, name
    hidden_rd = torch.cat([parts[-1][-1:] for parts in found.values()])
    assert torch.equal(runner.logits(hidden_rd, list(rows.values())), runner.logits(hidden_rd, [None] * 4))  # none of them is on the head


def test_opening_and_closing_leave_the_model_as_it_was():
    model = tiny_model(CONFIG).train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    runner, feeder = opened(model)
    assert model.is_prepared
    assert not any(module.training for module in model.modules())
    runner.run([feeder.piece("a", [1, 2, 3])])
    runner.close()
    assert [module.training for module in model.modules()] == modes
    assert not model.is_prepared


def test_an_adapter_that_is_attached_meanwhile_is_seen_by_the_next_step():
    model, ids = tiny_model(CONFIG), random_ids()["c"]
    runner, feeder = opened(model)
    runner.run([feeder.piece("c", ids[:8])])
    attach(model, AdapterSection(r=3, target_modules=["kv_b_proj"]))
    randomise(adapter_tensors(model))
    fresh, new = opened(model)
    fresh.run([new.piece("c", ids[:8])])
    expected_td = fresh.run([new.piece("c", ids[8:])])
    model.release_decode()  # as whoever attaches does
    runner.run([feeder.piece("again", ids[:8])])
    assert torch.equal(runner.run([feeder.piece("again", ids[8:])]), expected_td)
    assert relative_error(expected_td, plain(model, ids)[8:]) < EXACT


def test_a_rank_without_pieces_takes_part_in_every_exchange():
    """Experts spread over ranks: a rank that has nothing to compute calls the exchange of each layer all the same, once per step."""
    model, ids = tiny_model(CONFIG), random_ids()
    exchange = StayHome()
    expected = {name: plain(model, tokens) for name, tokens in ids.items()}
    for layer in model.model.layers:
        layer.mlp.experts.exchange = exchange
    runner, feeder = opened(model, recorder=lambda compute: compute)
    assert runner._graphs is None  # the exchange reads counts on the host
    assert runner.run([]).shape == (0, 64)
    assert [hidden[0] for hidden, _, _ in exchange.calls] == [0, 0]
    actual = hidden_in_steps(runner, feeder, ids, STEPS["late arrivals"])
    for name in ids:
        assert relative_error(actual[name], expected[name]) < EXACT
    assert [hidden[0] for hidden, _, _ in exchange.calls[2:6]] == [30, 30, 5, 5]  # mixed pieces go in one pass


@pytest.mark.parametrize(
    ("backend", "dtype", "records"), [("auto", "bfloat16", True), ("cpu", "float32", False), ("auto", "float64", False)]
)
def test_steps_that_read_values_on_the_host_are_not_recorded(backend, dtype, records):
    model = tiny_model(CONFIG).to(getattr(torch, dtype))
    for layer in model.model.layers:
        layer.mlp.experts.backend = backend
    runner = ModuleRunner(model, paged_cache(model), recorder=lambda compute: compute)
    assert (runner._graphs is not None) == records
