"""The names by which the parts of a layer are walked miss none, and weights are read anew at every step."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.models import tiny_model
from support.network_weights import make_pools, network_weights

from ms4_kernels.native import library, why_not
from ms4_kernels.step import NetworkStep


def test_every_field_of_a_layer_is_walked():
    layer = network_weights(tiny_model()).layers[0]
    walked = {name for name, _ in [*layer.projections(), *layer.vectors()]}
    assert walked | {"router", "experts"} == {field.name for field in dataclasses.fields(layer)}


@pytest.mark.skipif(library() is None, reason=why_not() or "no library")
def test_a_weight_changed_in_place_counts_from_the_next_step_on():
    model = tiny_model()
    step = NetworkStep(network_weights(model), make_pools(model, 4, 8), 8)
    embedding_td = torch.randn(5, 64)
    before_td = step.run(embedding_td, [5], [0], [[2]], [-1], range(5))
    with torch.no_grad():
        model.model.norm.weight.mul_(2)  # powers of two commute with rounding
    assert torch.equal(step.run(embedding_td, [5], [0], [[2]], [-1], range(5)), 2 * before_td)
