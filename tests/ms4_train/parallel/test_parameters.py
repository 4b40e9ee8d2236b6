"""Which parameters are trained, decayed, sharded, and written by whom."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.models import tiny_model
from torch import nn

from ms4_train.errors import CheckpointError, TrainingError
from ms4_train.parallel import Mesh
from ms4_train.parallel.parameters import checked_piece, even_share, expert_parameters, gathered, trained_parameters


class _Adapter(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(8, 2, 3))


def test_expert_parameters_are_the_stacks_and_their_adapters():
    model = tiny_model()
    model.model.layers[1].mlp.experts.lora = _Adapter()
    model.model.layers[1].mlp.experts.requires_grad_(False)
    experts = "model.layers.{}.mlp.experts."
    assert list(expert_parameters(model)) == [
        experts.format(0) + "gate_up_proj",
        experts.format(0) + "down_proj",
        experts.format(1) + "gate_up_proj",
        experts.format(1) + "down_proj",
        experts.format(1) + "lora.a",
    ]


def test_norms_do_not_decay_and_frozen_parameters_are_left_out():
    model = tiny_model()
    model.lm_head.requires_grad_(False)
    trained = trained_parameters(model, Mesh())
    assert [item.name for item in trained] == [name for name, _ in model.named_parameters() if name != "lm_head.weight"]
    assert {item.name.rsplit(".", 2)[-2] for item in trained if not item.decays} == {
        "input_layernorm",
        "post_attention_layernorm",
        "q_a_layernorm",
        "kv_a_layernorm",
        "norm",
    }


@pytest.mark.parametrize(
    ("mesh", "offset"),
    [(Mesh(0, 4, 2, 0), 0), (Mesh(1, 4, 2, 1), 8), (Mesh(2, 4, 2, 0), 0), (Mesh(3, 4, 2, 1), 8)],
)
def test_places_of_slices(mesh, offset):
    """The eight experts of this model are what one rank of two holds: of sixteen."""
    by_name = {item.name: item for item in trained_parameters(tiny_model(), mesh)}
    stack, dense = by_name["model.layers.0.mlp.experts.down_proj"], by_name["lm_head.weight"]
    assert (stack.sharded, stack.offset, stack.full_shape[0], stack.local_shape[0]) == (True, offset, 16, 8)
    assert (dense.sharded, dense.offset, dense.full_shape) == (False, 0, dense.local_shape)
    full = torch.arange(math.prod(stack.full_shape)).view(stack.full_shape)
    start, stop = stack.flat_range
    assert full.flatten()[start:stop].tolist() == full[offset : offset + 8].flatten().tolist()
    assert dense.flat_range == (0, math.prod(dense.full_shape))


def test_without_expert_parallelism_stacks_are_replicated():
    assert not any(item.sharded for item in trained_parameters(tiny_model(), Mesh(1, 2)))


@given(start=st.integers(0, 50), size=st.integers(0, 50), count=st.integers(1, 9))
def test_even_shares_cover_a_range_once(start, size, count):
    shares = [even_share(start, start + size, index, count) for index in range(count)]
    assert [value for a, b in shares for value in range(a, b)] == list(range(start, start + size))
    sizes = [b - a for a, b in shares]
    assert max(sizes) - min(sizes) <= 1


def test_a_stored_piece_is_checked():
    stored = {kind: torch.randn(9) for kind in ("weight", "exp_avg", "exp_avg_sq")} | {"step": torch.tensor(7)}
    tensors, step = checked_piece("down_proj", 9, stored)
    assert step == 7
    assert all(tensors[kind] is stored[kind] for kind in ("weight", "exp_avg", "exp_avg_sq"))
    stored["exp_avg"] = stored["exp_avg"][:8]
    with pytest.raises(CheckpointError, match=r"down_proj: the stored exp_avg is torch.float32 \[8\]; .*needs torch.float32 \[9\]"):
        checked_piece("down_proj", 9, stored)


def test_a_frozen_model_is_refused():
    with pytest.raises(TrainingError, match="no parameter"):
        trained_parameters(tiny_model().requires_grad_(False), Mesh())


def test_a_parameter_that_is_not_spread_is_read_as_it_is():
    head = tiny_model().lm_head.weight
    with gathered(head) as whole:
        assert whole.data_ptr() == head.data_ptr()
        assert not whole.requires_grad
