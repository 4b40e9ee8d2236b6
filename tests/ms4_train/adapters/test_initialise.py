"""Starts against PEFT's: distributions, decompositions that leave the model as it was, and the plain adapter that is saved of those."""

import math

import pytest
import torch
from support.adapted import logits_of, shake
from support.checkpoints import STACKS, relative_error
from support.models import hf_twin, tiny_model

from ms4_train.adapters import adapter_tensors, attach, detach, load_adapter, plain_adapter, save_adapter
from ms4_train.adapters.attach import adapter_parameters
from ms4_train.adapters.linear_lora import LoraLinear
from ms4_train.config.schema import AdapterSection
from ms4_train.errors import AdapterError

CHANGING = ["pissa", "pissa_niter_8", "olora"]
ALL = [*CHANGING, "default", "gaussian", "orthogonal"]


def attached(start, seed=3, **values):
    torch.manual_seed(seed)
    model = tiny_model()
    section = AdapterSection(**{"r": 4, "lora_alpha": 7.0, "init_lora_weights": start, **values})
    attach(model, section)
    return model, section


@pytest.mark.parametrize("start", ALL)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_untrained_model_computes_what_it_did(start, use_rslora):
    """1e-5 of the largest logit: the parts are rounded to fp32 and added again."""
    model, _ = attached(start, target_modules=["q_a_proj", "o_proj", "lm_head"], use_rslora=use_rslora)
    assert relative_error(logits_of(model), logits_of(tiny_model())) < 1e-5
    detach(model)
    assert relative_error(logits_of(model), logits_of(tiny_model())) < 1e-5


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_decompositions_are_pefts(start):
    from peft import LoraConfig, get_peft_model

    model, _ = attached(start, target_modules=["q_a_proj", "o_proj"])
    config = LoraConfig(r=4, lora_alpha=7, target_modules=["q_a_proj", "o_proj"], init_lora_weights=start)
    oracle = dict(get_peft_model(hf_twin(tiny_model()), config).named_parameters())
    parts = {name: value for name, value in model.named_parameters() if "lora_" in name or ".base_layer." in name}
    assert parts
    for name, value in parts.items():
        theirs = oracle[f"base_model.model.{name}"]
        if ".lora_" in name:  # vectors of a decomposition may be negated in pairs
            assert relative_error(value.detach().abs(), theirs.detach().abs()) < 1e-3, name
        else:
            assert relative_error(value.detach(), theirs.detach()) < 1e-4, name


@pytest.mark.parametrize("start", CHANGING)
@pytest.mark.parametrize(
    "values", [{}, {"use_rslora": True}, {"use_dora": True}, {"rank_pattern": {"o_proj": 2}, "alpha_pattern": {"o_proj": 3.0}}]
)
def test_saved_adapter_is_a_plain_one_of_the_untouched_base(tmp_path, start, values):
    model, section = attached(start, target_modules=["q_a_proj", "o_proj"], modules_to_save=["model.norm"], **values)
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    trained = logits_of(model)
    saved, tensors = plain_adapter(model, section, adapter_tensors(model))
    assert (saved.r, saved.init_lora_weights) == (8, "default")
    folder = tmp_path / "a"
    save_adapter(tensors, folder, section=saved, config=model.config, base_path="base", base_fingerprint="sha256:0")
    again = tiny_model()
    load_adapter(again, folder, base_fingerprint="sha256:0")
    assert relative_error(logits_of(again), trained) < 1e-4
    assert relative_error(logits_of(tiny_model()), trained) > 1e-2  # it was trained
    if start == "pissa":
        from peft import PeftModel

        oracle = PeftModel.from_pretrained(hf_twin(tiny_model()), folder)
        from support.adapted import peft_inputs

        with torch.no_grad():
            theirs = oracle.eval()(**peft_inputs(model), use_cache=False).logits[0]
        assert relative_error(trained, theirs) < 1e-4


def test_adapter_of_an_untouched_base_is_saved_as_it_is():
    model, section = attached("gaussian")
    same, tensors = plain_adapter(model, section, adapter_tensors(model))
    assert same is section
    assert all(torch.equal(value, tensors[name]) for name, value in adapter_tensors(model).items())


def test_bf16_base_is_what_is_left_of_the_rounded_adapter():
    """So that base and adapter add up to the weight, rounded once: 2^-8 of the largest value, where two roundings would add."""
    model = tiny_model(dtype=torch.bfloat16)
    before = model.model.layers[0].self_attn.o_proj.weight.detach().double().clone()
    attach(model, AdapterSection(r=4, target_modules=["o_proj"], init_lora_weights="pissa"))
    layer = model.model.layers[0].self_attn.o_proj
    assert isinstance(layer, LoraLinear)
    total = layer.base_layer.weight.double() + layer.scale * layer.b_or.double() @ layer.a_ri.double()
    assert relative_error(total.detach(), before) < 2**-9


def test_gaussian_and_orthogonal_are_pefts():
    model, _ = attached("gaussian", r=32, target_modules=["o_proj"], target_parameters=[*STACKS, "mlp.gate.weight"])
    for name, value in adapter_tensors(model).items():
        if "lora_B" in name or name.endswith(("_b_eir", "_b_edr")):
            assert not value.any(), name
        else:
            assert value.std().item() == pytest.approx(1 / 32, rel=0.1), name
    model, _ = attached("orthogonal", r=32, target_modules=["o_proj"])
    layer = model.model.layers[0].self_attn.o_proj
    assert isinstance(layer, LoraLinear)
    assert (layer.b_or @ layer.a_ri).abs().max() < 1e-6 * layer.b_or.norm() * layer.a_ri.norm()
    assert layer.b_or.std().item() == pytest.approx(math.sqrt(0.5) / 10, rel=0.2)


def test_embedding_starts_with_a_at_zero():
    model, _ = attached("default", r=16, target_modules=["embed_tokens"])
    tensors = adapter_tensors(model)
    assert not tensors["model.embed_tokens.lora_embedding_A.default"].any()
    assert tensors["model.embed_tokens.lora_embedding_B.default"].std().item() == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("start", ALL)
def test_values_follow_the_seed_and_the_name(start):
    def values(seed, draws):
        torch.manual_seed(seed)
        torch.rand(draws)  # numbers drawn before must not matter
        return adapter_tensors(attached(start, seed, target_modules=["q_a_proj", "o_proj"])[0])

    first, again, other = values(3, 0), values(3, 5), values(4, 0)
    assert all(torch.equal(first[name], again[name]) for name in first)
    differs = any(not torch.equal(first[name], other[name]) for name in first)
    assert differs == (start not in ("pissa", "olora"))


def test_random_start_leaves_torchs_generator_alone():
    torch.manual_seed(8)
    state = torch.get_rng_state()
    attach(tiny_model(), AdapterSection(r=4, init_lora_weights="pissa_niter_2"))
    torch.manual_seed(8)
    assert torch.equal(torch.get_rng_state(), state)


def test_shaken_adapter_differs():
    model, _ = attached("default")
    before = logits_of(model)
    shake(adapter_tensors(model))
    assert relative_error(logits_of(model), before) > 1e-2


def test_a_start_still_taken_out_of_the_base_is_not_saved(tmp_path):
    model, section = attached("pissa")
    with pytest.raises(AdapterError, match="plain_adapter"):
        save_adapter(adapter_tensors(model), tmp_path / "a", section=section, config=model.config, base_path="b", base_fingerprint="c")
