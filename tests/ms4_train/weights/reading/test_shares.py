"""Stand-ins and the shares beside them. The oracle of the division is ``torch.chunk`` of the padded values, which is DeepSpeed's own."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ms4_train.weights.reading.shares import (
    WHOLE,
    FlatShare,
    Sharing,
    assign,
    copied_module,
    held_bytes,
    move,
    put_share,
    share_of,
    stand_in,
    take_share,
)


def shared_linear(rank=1, size=2):
    """A linear layer [5, 3] of which a share waits, its values 0, 1, 2, ..."""
    layer = nn.Linear(3, 5, bias=False)
    layer.weight = nn.Parameter(stand_in((5, 3), torch.float32))
    share = Sharing(rank, size, 0, 1).empty((5, 3), torch.float32, is_expert=False)
    share.view(share.start, share.stop).copy_(torch.arange(15.0)[share.start : share.stop])
    put_share(layer.weight, share)
    return layer


@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=3), size=st.integers(1, 7), experts=st.integers(1, 7))
def test_shares_are_the_chunks_of_the_padded_values(shape, size, experts):
    values = torch.arange(1.0, 1.0 + torch.Size(shape).numel())
    for is_expert, count in ((False, size), (True, experts)):
        padded = torch.cat([values, torch.zeros(-len(values) % count)])
        for rank, expected in enumerate(padded.view(count, -1)):
            share = Sharing(rank if not is_expert else 0, size, rank if is_expert else 0, experts).empty(
                tuple(shape), torch.float32, is_expert=is_expert
            )
            share.view(share.start, share.stop).copy_(values[share.start : share.stop])
            assert torch.equal(share.values, expected)
            assert share.overlap(0, len(values)) == (share.start, share.stop)
            assert share.overlap(share.stop, share.stop + 3)[0] == share.overlap(share.stop, share.stop + 3)[1]


def test_a_stand_in_takes_no_memory_cannot_be_written_and_reads_as_nan():
    parameter = nn.Parameter(stand_in((1 << 20, 1 << 20), torch.bfloat16))
    assert parameter.untyped_storage().nbytes() == 2
    assert parameter[5, 7].isnan()
    with pytest.raises(RuntimeError, match="single memory location"), torch.no_grad():
        nn.Parameter(stand_in((2, 3), torch.bfloat16)).copy_(torch.zeros(2, 3))
    layer = shared_linear()
    assert bool(layer(torch.ones(2, 3)).isnan().all()), "nothing is computed from it unseen"


def test_a_copy_of_a_module_has_a_share_of_its_own():
    layer = shared_linear()
    share = share_of(layer.weight)
    assert share is not None
    assert held_bytes(layer.weight) == 8 * 4
    assert held_bytes(nn.Parameter(torch.zeros(5, 3))) == 15 * 4
    twin = copied_module(layer)
    assert twin.weight.shape == (5, 3)
    assert torch.equal(share_of(twin.weight).values, share.values)
    assert share_of(twin.weight).values.data_ptr() != share.values.data_ptr()
    assert twin.weight.untyped_storage().nbytes() == 4
    assert copy.deepcopy(layer).weight.untyped_storage().nbytes() == 15 * 4, "what copied_module is for"


def test_assigning_takes_the_part_of_this_share():
    layer = shared_linear()
    assign(layer.weight, torch.arange(100.0, 115.0).view(5, 3))
    assert share_of(layer.weight).values.tolist() == [108.0, 109, 110, 111, 112, 113, 114, 0]
    with pytest.raises(ValueError, match=r"value \[3, 5\] for a parameter \[5, 3\]"):
        assign(layer.weight, torch.zeros(3, 5))
    plain = nn.Linear(3, 5, bias=False)
    assign(plain.weight, torch.ones(5, 3))
    assert bool((plain.weight == 1).all())


def test_a_share_is_taken_once():
    layer = shared_linear()
    assert isinstance(take_share(layer.weight), FlatShare)
    assert take_share(layer.weight) is None


@pytest.mark.gpu
def test_moving_leaves_shares_where_they_are():
    model, gpu = nn.Sequential(shared_linear(), nn.BatchNorm1d(5)), torch.device("cuda", 0)
    values = share_of(model[0].weight).values
    assert move(model, gpu, shares_only=True) is model
    assert (model[0].weight.device, share_of(model[0].weight).values.data_ptr()) == (gpu, values.data_ptr())
    assert model[0].weight.untyped_storage().nbytes() == 4
    assert (model[1].weight.device.type, model[1].running_mean.device) == ("cpu", gpu)
    move(model, gpu)
    assert model[1].weight.device == gpu
    assert share_of(model[0].weight).values.device.type == "cpu"


def test_moving_to_where_it_is_changes_nothing():
    model = nn.Sequential(shared_linear(), nn.BatchNorm1d(5))
    kept = [model[1].weight.data_ptr(), model[1].running_mean.data_ptr(), share_of(model[0].weight).values.data_ptr()]
    move(model, torch.device("cpu"))
    assert kept == [model[1].weight.data_ptr(), model[1].running_mean.data_ptr(), share_of(model[0].weight).values.data_ptr()]
    assert model[0].weight.shape == (5, 3)


def test_a_process_that_holds_everything():
    share = WHOLE.empty((2, 3), torch.float32, is_expert=True)
    assert (share.start, share.stop, len(share.values)) == (0, 6, 6)
