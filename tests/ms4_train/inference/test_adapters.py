"""Adapters loaded and dropped by name: rows of each equal a model with its weights changed by hand, and PEFT's; the model stays itself."""

from __future__ import annotations

import pytest
import torch
from support.adapted import section, shake
from support.adapter_rows import DORA, ENDS, SAVED, SEES, SMALL, WIDE, changed, make_folder, seeing_model, with_adapter
from support.checkpoints import ATTENTION, our_logits, relative_error, some_ids
from support.models import hf_twin, tiny_model
from support.multimodal import cells_of, image_batch, random_pixels
from support.steps import Feeder, paged_cache

from ms4_train.adapters import adapter_tensors, attach, merge
from ms4_train.adapters.attach import adapter_parameters
from ms4_train.errors import AdapterError
from ms4_train.inference.adapters import AdapterRegistry
from ms4_train.inference.module_runner import ModuleRunner

CASES = {"wide": (WIDE, 1), "ends": (ENDS, 2), "small": (SMALL, 3), "dora": (DORA, 4), "saved": (SAVED, 5)}
IDS = some_ids(20).tolist()
# fp32: W + s B A formed first rounds otherwise than two products do, as in tests/ms4_train/adapters.
CLOSE = 1e-4


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    return {name: make_folder(root / name, *case) for name, case in CASES.items()}


def opened(model):
    cache = paged_cache(model)
    runner = ModuleRunner(model, cache)
    runner.open()
    return runner, Feeder(cache)


def step(runner, feeder, tokens):
    """Logits [t, v] of the next tokens of sequences; tokens: (name, adapter) -> ids."""
    pieces = [feeder.piece(f"{name} {adapter}", ids, adapter=adapter) for (name, adapter), ids in tokens.items()]
    rows = [piece.adapter for piece in pieces for _ in piece.token_ids]
    parts = runner.logits(runner.run(pieces), rows).split([len(ids) for ids in tokens.values()])
    return dict(zip(tokens, parts, strict=True))


def test_loading_changes_nothing_but_what_can_be_named(folders):
    model = with_adapter(WIDE, 9, name="live").train()
    model.model.norm.weight.requires_grad_()
    registry = AdapterRegistry(model, base_fingerprint="sha256:0")
    assert (registry.names, registry.loaded, registry.generation("live")) == (("live",), (), 0)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    before, random_state = our_logits(model), torch.get_rng_state()
    registry.load("ends", folders["ends"])
    registry.load("small", folders["small"])
    assert torch.equal(torch.get_rng_state(), random_state)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained
    assert torch.equal(our_logits(model), before)
    assert set(registry.names) == {"live", "ends", "small"}
    assert registry.loaded == ("ends", "small")
    assert [registry.names[registry.index(name)] for name in registry.names] == list(registry.names)
    first = registry.generation("small")
    registry.drop("small")
    registry.load("small", folders["small"])
    assert registry.generation("small") > first > 0


def test_rows_of_each_while_others_come_and_go(folders):
    """A sequence that runs on is not disturbed by what is loaded and dropped beside it."""
    model = with_adapter(WIDE, 9, name="live")
    registry = AdapterRegistry(model)
    runner, feeder = opened(model)
    expected = {None: changed(WIDE, 9), **{name: changed(*case) for name, case in CASES.items()}}
    found = {None: [step(runner, feeder, {("s", None): IDS[:6]})["s", None]]}
    for count, name in enumerate(CASES, start=1):
        registry.load(name, folders[name])
        now = {("s", None): IDS[5 + count : 6 + count], ("s", name): IDS[: 10 + count], (f"t{count}", None): IDS[:count]}
        parts = step(runner, feeder, now)
        found[None].append(parts["s", None])
        found[name] = [parts["s", name]]
        assert relative_error(parts[f"t{count}", None], our_logits(expected[None], torch.tensor(IDS[:count]))) < CLOSE
    registry.drop("wide")
    parts = step(runner, feeder, {("s", name): IDS[sum(map(len, parts)) :] for name, parts in found.items() if name != "wide"})
    for (_, name), part in parts.items():
        found[name].append(part)
    runner.close()
    for name, pieces in found.items():
        logits_tv = torch.cat(pieces)
        others = [other for key, other in expected.items() if key != name]
        assert relative_error(logits_tv, our_logits(expected[name], torch.tensor(IDS[: len(logits_tv)]))) < CLOSE, name
        assert min(relative_error(logits_tv, our_logits(other, torch.tensor(IDS[: len(logits_tv)]))) for other in others) > 100 * CLOSE


def test_values_of_an_adapter_in_training_are_seen_at_the_next_opening(folders):
    model = with_adapter(WIDE, 9, name="live")
    AdapterRegistry(model).load("small", folders["small"])
    tokens = {("a", None): IDS, ("a", "small"): IDS, ("a", "live"): IDS}
    for seed in (9, 10):
        shake(adapter_tensors(model, "live"), seed)
        runner, feeder = opened(model)
        parts = step(runner, feeder, tokens)
        runner.close()
        for name in (None, "live"):
            assert relative_error(parts["a", name], our_logits(changed(WIDE, seed), torch.tensor(IDS))) < CLOSE
        assert relative_error(parts["a", "small"], our_logits(changed(*CASES["small"]), torch.tensor(IDS))) < CLOSE


def test_rows_equal_peft(tmp_path):
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=3, lora_alpha=7.0, target_modules=[*ATTENTION, "lm_head"], use_rslora=True)
    oracle = get_peft_model(hf_twin(tiny_model()), settings)
    shake({name: value for name, value in oracle.named_parameters() if "lora_" in name})
    oracle.save_pretrained(tmp_path)
    model = tiny_model()
    AdapterRegistry(model).load("theirs", tmp_path)
    runner, feeder = opened(model)
    parts = step(runner, feeder, {("a", "theirs"): IDS, ("a", None): IDS})
    with torch.no_grad():
        theirs_tv = oracle.eval()(torch.tensor([IDS]), use_cache=False).logits[0]
        with oracle.disable_adapter():
            base_tv = oracle(torch.tensor([IDS]), use_cache=False).logits[0]
    assert relative_error(parts["a", "theirs"], theirs_tv) < CLOSE
    assert relative_error(parts["a", None], base_tv) < CLOSE


def test_images_are_seen_with_the_requests_adapter(tmp_path):
    model = seeing_model()
    images = image_batch(random_pixels(cells_of([(2, 3), (1, 2)]), model.vision_config), model.vision_config)
    AdapterRegistry(model).load("sees", make_folder(tmp_path, SEES, 3, make=seeing_model))
    runner, _ = opened(model)
    with torch.no_grad():
        expected = {"sees": changed(SEES, 3, make=seeing_model).image_features(images), None: seeing_model().image_features(images)}
    for name, features_nd in expected.items():
        assert relative_error(runner.image_features(images, name), features_nd) < CLOSE
    assert relative_error(expected["sees"], expected[None]) > 100 * CLOSE


def test_dropping_the_last_one_leaves_the_modules_that_were_there(folders):
    model = tiny_model()
    modules = dict(model.named_modules())
    registry = AdapterRegistry(model)
    for name, folder in folders.items():
        registry.load(name, folder)
    assert any(name not in modules for name, _ in model.named_modules())
    for name in folders:
        registry.drop(name)
    after = dict(model.named_modules())
    assert after.keys() == modules.keys()
    assert all(after[name] is module for name, module in modules.items())
    assert all(parameter.requires_grad for parameter in model.parameters())  # as in a new model
    assert registry.names == ()
    assert torch.equal(our_logits(model), our_logits(tiny_model()))


def test_what_cannot_be_named_or_loaded(folders, tmp_path):
    model = with_adapter(SMALL, 9, name="live")
    registry = AdapterRegistry(model, base_fingerprint="sha256:0")
    before, bits = dict(model.named_modules()), our_logits(model)
    for name in ("a.b", "", "keys"):
        with pytest.raises(AdapterError, match="no name"):
            registry.load(name, folders["wide"])
    with pytest.raises(AdapterError, match="already"):
        registry.load("live", folders["wide"])
    with pytest.raises(AdapterError, match="another model"):
        registry.load("wide", folders["wide"], base_fingerprint="sha256:1")
    with pytest.raises(AdapterError, match="no such folder"):
        registry.load("wide", tmp_path / "nothing")
    with pytest.raises(AdapterError, match="no adapter 'live'"):
        registry.drop("live")  # the run's, not ours
    with pytest.raises(AdapterError, match=r"no adapter 'liev'.*live"):
        registry.index("liev")
    assert dict(model.named_modules()) == before
    assert torch.equal(our_logits(model), bits)
    assert registry.version == 0


def test_whole_blocks_are_refused(tmp_path):
    model = tiny_model()
    modules = dict(model.named_modules())
    folder = make_folder(tmp_path, {"target_modules": ["lm_head"], "modules_to_save": ["self_attn"]}, 3)
    with pytest.raises(AdapterError, match=r"self_attn whole.*merge"):
        AdapterRegistry(model).load("block", folder)
    assert dict(model.named_modules()) == modules


def test_merged_weights_are_refused(folders):
    model = tiny_model()
    attach(model, section(**SMALL), name="live")
    registry = AdapterRegistry(model)
    merge(model, keep=True)
    with pytest.raises(AdapterError, match="merged"):
        registry.load("wide", folders["wide"])
    registry.refresh()
    assert registry.names == ()
    assert set(adapter_parameters(model, "live"))
