"""PEFT's layer with a fused forward: equal to PEFT's own, and PEFT's own wherever it is not plain."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora import Linear as PeftLinear
from support.checkpoints import randomise
from support.models import tiny_model

from ms4_kernels.native import library
from ms4_train.adapters import adapter_tensors, attach
from ms4_train.adapters.attach import adapted_modules, detach
from ms4_train.adapters.fused_linear import fuse, is_plain
from ms4_train.config.schema import AdapterSection
from ms4_train.model.linear import Linear


def adapted_layer(**section):
    """A LoRA layer of a tiny model with random factors, and an input of it that is large enough for the compiled products."""
    model = tiny_model()
    attach(model, AdapterSection(r=4, lora_alpha=8, target_modules=["q_b_proj"], **section))
    randomise(adapter_tensors(model))
    layer = dict(adapted_modules(model))["model.layers.0.self_attn.q_b_proj"]
    return model, layer, torch.randn(2000, layer.in_features)


def run(forward, layer, x):
    x = x.clone().requires_grad_()
    y = forward(layer, x)
    factors = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    return [y, *torch.autograd.grad((y * torch.linspace(-1, 1, y.shape[-1])).sum(), [x, *factors])]


@pytest.mark.skipif(library() is None, reason="no C compiler")
def test_equals_pefts_forward():
    _, layer, x = adapted_layer()
    assert isinstance(layer, PeftLinear)
    actual = run(lambda layer, x: layer(x), layer, x)
    assert "LoraLinear" in type(actual[0].grad_fn).__name__
    for ours, theirs in zip(actual, run(PeftLinear.forward, layer, x), strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()  # fp32, other orders of sums of 2000 terms


@pytest.mark.parametrize("change", ["dropout", "disabled", "merged", "base", "dtype"])
def test_what_is_not_plain_is_left_to_peft(change, monkeypatch):
    model, layer, x = adapted_layer(lora_dropout=0.5 if change == "dropout" else 0.0)
    model.train()
    if change == "disabled":
        layer.enable_adapters(False)
    elif change == "merged":
        layer.merge()
    elif change == "base":
        layer.base_layer = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
    elif change == "dtype":
        layer.double()
        x = x.double()
    assert is_plain(layer) == (change == "dtype")
    monkeypatch.setattr("ms4_train.adapters.fused_linear.lora_linear", lambda *arguments: pytest.fail("not plain"))
    torch.manual_seed(0)
    actual = layer(x)
    torch.manual_seed(0)
    assert torch.equal(actual, PeftLinear.forward(layer, x))


def test_dropout_does_nothing_in_evaluation():
    model, layer, _ = adapted_layer(lora_dropout=0.5)
    assert is_plain(layer.eval())
    assert not is_plain(layer.train())
    assert model is not None


def test_fusing_twice_and_detaching():
    model, layer, _ = adapted_layer()
    fused = type(layer)
    fuse(layer)
    assert type(layer) is fused
    assert fused is not PeftLinear
    assert adapter_tensors(model)
    detach(model)
    assert type(model.model.layers[0].self_attn.q_b_proj) is Linear
