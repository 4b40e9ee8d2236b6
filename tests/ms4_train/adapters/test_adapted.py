"""A module with adapters lets through what it lacks, and rests while its weight holds them."""

import copy

import pytest
import torch

from ms4_train.adapters.adapted import wide
from ms4_train.adapters.linear_lora import LoraLinear
from ms4_train.model.linear import Linear


def layer():
    module = LoraLinear(Linear(6, 5), rank=2, scale=0.5)
    torch.nn.init.normal_(module.base_layer.weight)
    torch.nn.init.normal_(module.b_or)
    return module


def test_attributes_of_the_module_inside_are_seen():
    module = layer()
    assert module.weight is module.base_layer.weight
    assert (module.in_features, module.out_features) == (6, 5)
    with pytest.raises(AttributeError, match="nothing_there"):
        module.nothing_there  # noqa: B018
    assert torch.equal(copy.deepcopy(module).weight, module.weight)


def test_merged_adapters_rest_and_unmerging_restores_every_bit():
    module, x = layer(), torch.randn(3, 6)
    before, y = module.weight.detach().clone(), module(x)
    exact = module.changed_weight()
    torch.testing.assert_close(exact, before + 0.5 * module.b_or @ module.a_ri)
    with torch.no_grad():
        module.weight.copy_(exact)
    module.keep_unmerged(before)
    assert module.is_merged
    assert module.acting == ()
    torch.testing.assert_close(module(x), y)
    module.unmerge()
    module.unmerge()  # a second time changes nothing
    assert torch.equal(module.weight, before)
    assert module.acting == ("default",)


def test_wide_keeps_fp64():
    assert [wide(torch.ones(1, dtype=kind)).dtype for kind in (torch.bfloat16, torch.float32, torch.float64)] == [
        torch.float32,
        torch.float32,
        torch.float64,
    ]
