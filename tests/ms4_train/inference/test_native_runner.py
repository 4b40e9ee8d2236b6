"""The compiled runner computes what the modules compute, for everything that it serves; of what it does not serve it says why."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from support.adapted import PARTS, section, shake
from support.adapter_rows import DORA, ENDS, SAVED, SEES, SMALL, WIDE, change, changed, make_folder, seeing_model, with_adapter
from support.checkpoints import our_logits, relative_error, some_ids
from support.models import hf_twin, tiny_config, tiny_model
from support.multimodal import IMG, cells_of, image_batch, random_pixels, sequence_ids
from support.quantised_models import KINDS, dequantised_twin, quantised_tiny
from support.steps import Feeder, greedy, hidden_in_steps, paged_cache

from ms4_train.adapters import adapter_tensors, attach, load_adapter, merge, set_active_adapters
from ms4_train.errors import AdapterError, EngineError
from ms4_train.inference.adapters import AdapterRegistry
from ms4_train.inference.module_runner import ModuleRunner
from ms4_train.inference.native_runner import NativeRunner, against
from ms4_train.inference.step import ImagePlaces
from ms4_train.model import RopeParameters, SequenceLayout

CONFIG = tiny_config(rope_parameters=RopeParameters(factor=8.0, original_max_position_embeddings=16))  # the query scale acts from 16 on
IDS = {"a": some_ids(21).tolist(), "b": some_ids(1).tolist(), "c": some_ids(50).tolist()[41:], "d": some_ids(40).tolist()}
STEPS = [{"d": 30}, {"d": 1, "c": 4}, {"d": 1, "c": 5, "a": 20, "b": 1}]
# fp32 through two layers, sums in another order, as in test_module_runner; with adapters as in tests/ms4_train/adapters.
EXACT, CLOSE = 2e-5, 1e-4


def opened(model, kind=NativeRunner, *, dtype=torch.float32):
    cache = paged_cache(model, dtype=dtype)
    assert kind is ModuleRunner or against(model, cache) == ""
    runner: Any = NativeRunner(model, cache, AdapterRegistry(model)) if kind is NativeRunner else ModuleRunner(model, cache)
    runner.open()
    return runner, Feeder(cache)


def logits_by_adapter(runner, feeder, adapters):
    """Logits of sequence "d" under each adapter, in one batch, its prompt in two pieces of unequal company."""
    found = {}
    for part in (slice(0, 13), slice(13, 40)):
        pieces = [feeder.piece(f"{name}", IDS["d"][part], adapter=name) for name in adapters]
        rows = [piece.adapter for piece in pieces for _ in piece.token_ids]
        parts = runner.logits(runner.run(pieces), rows).split([len(piece.token_ids) for piece in pieces])
        for name, part_tv in zip(adapters, parts, strict=True):
            found[name] = torch.cat([found[name], part_tv]) if name in found else part_tv
    return found


@torch.no_grad()
def plain(model, tokens):
    return model(torch.tensor(tokens), SequenceLayout.from_lengths([len(tokens)]))


def test_pieces_in_company_equal_one_pass_over_each():
    model = tiny_model(CONFIG)
    runner, feeder = opened(model)
    found = hidden_in_steps(runner, feeder, IDS, STEPS)
    oracle = hf_twin(model)
    for name, tokens in IDS.items():
        assert relative_error(found[name], plain(model, tokens)) < EXACT, name
        with torch.no_grad():
            assert relative_error(runner.logits(found[name], [None] * len(tokens)), oracle(torch.tensor([tokens])).logits[0]) < CLOSE


def test_greedy_tokens_equal_recomputing(model, alone, prompts):
    runner, feeder = opened(model)
    found = greedy(runner, feeder, {str(number): prompt for number, prompt in enumerate(prompts[:6])}, 8)
    for number, prompt in enumerate(prompts[:6]):
        assert found[str(number)] == alone(prompt, 8)


def test_mode_is_given_back():
    model = tiny_model().train()
    model.model.norm.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    runner, _ = opened(model)
    assert not model.training
    runner.close()
    assert {name: module.training for name, module in model.named_modules()} == modes


@pytest.mark.parametrize("kind", [*KINDS, "bf16"])
def test_other_weights_equal_the_same_values_in_fp32(kind):
    """Activations are fp32 whatever the weights are: the oracle is the plain model of the same values."""
    model = tiny_model(dtype=torch.bfloat16) if kind == "bf16" else quantised_tiny(kind)
    twin = tiny_model(dtype=torch.bfloat16).float() if kind == "bf16" else dequantised_twin(model)
    runner, feeder = opened(model)
    found = hidden_in_steps(runner, feeder, IDS, STEPS)
    for name, tokens in IDS.items():
        assert relative_error(found[name], plain(twin, tokens)) < EXACT, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_narrow_pools_store_what_the_modules_store(dtype):
    """Both write the same latents up to fp32 noise, which may fall to the other side of a rounding: a step of bf16 is 0.4%, of e4m3 6%."""
    model, found = tiny_model(CONFIG), {}
    for kind in (NativeRunner, ModuleRunner):
        runner, feeder = opened(model, kind, dtype=dtype)
        found[kind] = hidden_in_steps(runner, feeder, {"d": IDS["d"]}, [{"d": 1}])["d"]
        runner.close()
    error = float((found[NativeRunner] - found[ModuleRunner]).norm() / found[ModuleRunner].norm())
    exact = float((found[ModuleRunner] - plain(model, IDS["d"])).norm() / plain(model, IDS["d"]).norm())
    assert error < 0.3 * exact  # what the type itself costs


@pytest.mark.parametrize("base", ["fp32", *KINDS])
def test_rows_of_several_adapters_share_a_step(tmp_path, base):
    make = tiny_model if base == "fp32" else lambda: quantised_tiny(base)
    model = make()
    attach(model, section(**WIDE), name="live")
    shake(adapter_tensors(model, "live"), 1)
    head = {"target_modules": ["lm_head", "embed_tokens", "kv_b_proj"]}
    for name, values, seed in (("small", SMALL, 3), ("head", head, 4)):
        load_adapter(model, make_folder(tmp_path / name, values, seed), base_fingerprint=None, name=name)
    set_active_adapters(model, ["live"])
    found = logits_by_adapter(*opened(model), ["small", None, "head", "live"])

    def plain_base():
        return tiny_model() if base == "fp32" else dequantised_twin(make())

    expected = {"small": (SMALL, 3), "head": (head, 4), "live": (WIDE, 1), None: (WIDE, 1)}
    for name, case in expected.items():
        assert relative_error(found[name], our_logits(changed_base(plain_base(), *case), torch.tensor(IDS["d"]))) < CLOSE, name
    assert torch.equal(found["live"], found[None])
    others = logits_by_adapter(*opened(model, ModuleRunner), ["small", None, "head", "live"])
    assert all(relative_error(found[name], others[name]) < CLOSE for name in found)


def changed_base(model, values, seed):
    change(model, adapter_tensors(with_adapter(values, seed)), section(**values))
    return model


def test_company_changes_no_bit(tmp_path):
    model = with_adapter(WIDE, 1, name="live")
    load_adapter(model, make_folder(tmp_path, SMALL, 3), base_fingerprint=None, name="small")
    set_active_adapters(model, ["live"])
    together = logits_by_adapter(*opened(model), ["small", None, "live"])
    for name in ("small", None):
        assert torch.equal(logits_by_adapter(*opened(model), [name])[name], together[name])


def test_values_in_training_are_seen_in_place():
    """Without opening it again: the step reads the parameters themselves."""
    model = with_adapter(WIDE, 1, name="live")
    runner, feeder = opened(model)
    for seed in (1, 2):
        shake(adapter_tensors(model, "live"), seed)
        logits_tv = runner.logits(runner.run([feeder.piece(f"{seed}", IDS["a"])]), [None] * 21)
        assert relative_error(logits_tv, our_logits(changed(WIDE, seed), torch.tensor(IDS["a"]))) < CLOSE


def test_merged_and_saved_modules_serve_rows_as_the_model_stands():
    model = with_adapter(WIDE, 1)
    merge(model, keep=True)
    found = logits_by_adapter(*opened(model), [None])[None]
    assert relative_error(found, our_logits(changed(WIDE, 1), torch.tensor(IDS["d"]))) < CLOSE
    model = with_adapter(SAVED, 2)
    set_active_adapters(model, ["default"])
    assert "saved whole" not in against(model, paged_cache(model))
    found = logits_by_adapter(*opened(model), [None])[None]
    assert relative_error(found, our_logits(changed(SAVED, 2), torch.tensor(IDS["d"]))) < CLOSE


def test_images_in_their_places_with_the_requests_adapter(tmp_path):
    model = seeing_model()
    load_adapter(model, make_folder(tmp_path, SEES, 3, make=seeing_model), base_fingerprint=None, name="sees")
    set_active_adapters(model, [])
    ids = sequence_ids(PARTS, 512)
    images = image_batch(random_pixels(cells_of(PARTS), model.vision_config), model.vision_config)
    offsets = (ids == IMG).nonzero()[:, 0].tolist()
    runner, feeder = opened(model)
    expected = {"sees": changed(SEES, 3, make=seeing_model), None: seeing_model()}
    pieces = [
        feeder.piece(f"{name}", ids.tolist(), adapter=name, images=ImagePlaces(tuple(offsets), runner.image_features(images, name)))
        for name in expected
    ]
    for (name, oracle), hidden_td in zip(expected.items(), runner.run(pieces).split(len(ids)), strict=True):
        with torch.no_grad():
            expected_td = oracle(ids, SequenceLayout.from_lengths([len(ids)]), images=images)
        assert relative_error(hidden_td, expected_td) < CLOSE, name


def hooked():
    model = tiny_model()
    model.model.layers[1].self_attn.o_proj.register_forward_hook(lambda *_: None)
    return model


def replaced():
    model = tiny_model()
    model.model.norm.forward = lambda x: x
    return model


def spread():
    model = tiny_model()
    model.model.layers[0].mlp.experts.exchange = lambda hidden, ids, weights, compute: compute(hidden, ids, weights)
    return model


def two_saved():
    model = with_adapter(SAVED, 1)
    attach(model, section(**SAVED), name="second")
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: tiny_model(dtype=torch.float64), "float64"),
        (lambda: tiny_model(dtype=torch.float16), "float16"),
        (lambda: tiny_model().to("meta"), "on meta"),
        (hooked, "o_proj has hooks"),
        (replaced, r"model\.norm has hooks, or another forward pass"),
        (spread, "spread over processes"),
        (lambda: with_adapter(DORA, 1), "DoRA"),
        (lambda: with_adapter(ENDS, 1), "a router"),
        (two_saved, "saved whole"),
    ],
)
def test_what_it_does_not_serve(make, reason):
    model = make()
    cache = paged_cache(tiny_model(), dtype=torch.float32)
    found = against(model, cache)
    assert re.search(reason, found), found


def test_what_it_does_not_serve_is_not_loaded_while_it_is_open(tmp_path):
    model = with_adapter(WIDE, 1, name="live")
    cache, registry = paged_cache(model), AdapterRegistry(model)
    runner = NativeRunner(model, cache, registry)
    runner.open()
    modules, before = dict(model.named_modules()), our_logits(model)
    for name, values in (("turned", DORA), ("ends", ENDS), ("saved", SAVED)):
        make_folder(tmp_path / name, values, 3)
        with pytest.raises(AdapterError, match=r"open cannot serve it.*runner: modules"):
            registry.load(name, tmp_path / name)
    assert dict(model.named_modules()) == modules
    assert torch.equal(our_logits(model), before)
    runner.close()
    registry.load("turned", tmp_path / "turned")
    with pytest.raises(EngineError, match="DoRA"):
        runner.open()


def test_adapters_come_and_go_between_steps(tmp_path):
    model = with_adapter(WIDE, 1, name="live")
    registry, cache = AdapterRegistry(model), paged_cache(model)
    runner, feeder = NativeRunner(model, cache, registry), Feeder(cache)
    folder, found = make_folder(tmp_path, SMALL, 3), []
    runner.open()
    for step, ids in enumerate((IDS["d"][:10], IDS["d"][10:20], IDS["d"][20:])):
        pieces = [feeder.piece("live", ids)]
        if step == 1:
            registry.load("small", folder)
            pieces.append(feeder.piece("small", IDS["a"], adapter="small"))
        if step == 2:
            registry.drop("small")
        if step:
            runner.close()  # as a run does when adapters change
            runner.open()
        rows = [piece.adapter for piece in pieces for _ in piece.token_ids]
        live_tv, small_tv = runner.logits(runner.run(pieces), rows).split([len(ids), len(rows) - len(ids)])
        found.append(live_tv)
        if step == 1:
            assert relative_error(small_tv, our_logits(changed(SMALL, 3), torch.tensor(IDS["a"]))) < CLOSE
    assert relative_error(torch.cat(found), our_logits(changed(WIDE, 1), torch.tensor(IDS["d"]))) < CLOSE


def test_without_compiled_kernels(monkeypatch):
    monkeypatch.setattr("ms4_train.inference.native_runner.library", lambda: None)
    monkeypatch.setattr("ms4_train.inference.native_runner.why_not", lambda: "MS4_NATIVE=0")
    assert against(tiny_model(), paged_cache(tiny_model())) == "there are no compiled kernels: MS4_NATIVE=0"
