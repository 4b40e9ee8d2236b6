"""Our LoRA layer against PEFT's: values and gradients, dropout, quantised bases; fused where nothing stands between the products."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from support.quantised_models import quantised_tiny

from ms4_kernels.native import library
from ms4_train.adapters.attach import adapted_modules, attach
from ms4_train.adapters.linear_lora import LoraLinear
from ms4_train.config.schema import AdapterSection
from ms4_train.model.linear import Linear
from ms4_train.model.quantised import QuantisedLinear

needs_library = pytest.mark.skipif(library() is None, reason="no C compiler")


def pair(dropout=0.0, rank=4, dtype=torch.float32):
    """(our layer, PEFT's) over one base with the same random factors."""
    from peft import LoraConfig
    from peft.tuners.lora import Linear as PeftLinear

    base = Linear(96, 128).to(dtype)
    base.weight.requires_grad_(False)
    ours = LoraLinear(base, rank=rank, scale=2.0, dropout=dropout)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=dropout)
    theirs = PeftLinear(base, "default", config=config, r=rank, lora_alpha=2 * rank)
    torch.nn.init.normal_(ours.a_ri)
    torch.nn.init.normal_(ours.b_or)
    theirs.lora_A["default"].weight.data = ours.a_ri.detach().clone()
    theirs.lora_B["default"].weight.data = ours.b_or.detach().clone()
    return ours, theirs.to(dtype)


def run(layer, x):
    x = x.clone().requires_grad_()
    torch.manual_seed(3)  # of the dropout
    y = layer(x)
    factors = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    return [y, *torch.autograd.grad((y * torch.linspace(-1, 1, y.shape[-1], dtype=y.dtype)).sum(), [x, *factors])]


@pytest.mark.parametrize("rows", [3, 1000])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_pefts_layer(rows, dropout, dtype):
    ours, theirs = pair(dropout, dtype=dtype)
    x = torch.randn(rows, 96, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02  # sums of 1000 terms in other orders; bf16 keeps 8 bits
    for mine, peft in zip(run(ours, x), run(theirs, x), strict=True):
        assert (mine - peft).norm() <= tolerance * peft.norm()
        assert mine.dtype == peft.dtype


@needs_library
def test_fused_where_nothing_stands_between():
    ours, _ = pair()
    x = torch.randn(1000, 96)
    assert "LoraLinear" in type(ours(x).grad_fn).__name__
    assert "LoraLinear" not in type(ours(x[:3]).grad_fn).__name__
    dropping, _ = pair(dropout=0.5)
    assert "LoraLinear" not in type(dropping.train()(x).grad_fn).__name__
    assert "LoraLinear" in type(dropping.eval()(x).grad_fn).__name__


@needs_library
@pytest.mark.parametrize("part", ["base_layer", "lora_A.default", "lora_B.default"])
def test_hooks_see_their_layers_called(part):
    ours, _ = pair()
    seen = []
    ours.get_submodule(part).register_forward_hook(lambda *arguments: seen.append(part))
    ours(torch.randn(1000, 96))
    assert seen == [part]


def test_a_fresh_adapter_changes_no_bit():
    base = Linear(96, 128)
    x = torch.randn(1000, 96)
    assert torch.equal(LoraLinear(base, rank=4, scale=2.0)(x), base(x))


def test_names_are_pefts():
    ours, theirs = pair()
    assert dict(ours.named_parameters()).keys() == dict(theirs.named_parameters()).keys()
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]


def test_over_a_quantised_base():
    model = quantised_tiny("fp8")
    attach(model, AdapterSection(r=2, target_modules=["o_proj"]))
    layer = dict(adapted_modules(model))["model.layers.0.self_attn.o_proj"]
    assert isinstance(layer, LoraLinear)
    assert isinstance(layer.base_layer, QuantisedLinear)
    torch.nn.init.normal_(layer.b_or)
    x = torch.randn(5, layer.base_layer.in_features)
    weight_oi = layer.base_layer.weight + layer.scale * layer.b_or @ layer.a_ri
    torch.testing.assert_close(layer(x), x @ weight_oi.t(), rtol=1e-4, atol=1e-4)  # fp32


def test_training_needs_neither_peft_nor_transformers():
    code = (
        "import sys, torch\n"
        "from ms4_train.adapters import attach\n"
        "from ms4_train.config.schema import AdapterSection\n"
        "from ms4_train.model import Mistral4ForCausalLM, TextConfig\n"
        "with torch.device('meta'):\n"
        "    model = Mistral4ForCausalLM(TextConfig(num_hidden_layers=1))\n"
        "print([name for name in ('peft', 'transformers') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.strip() == "[]"
