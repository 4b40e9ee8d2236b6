"""Plans: positions and slots as the definition has them, and decoding planned without a look at any value."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ms4_kernels.latent_attention import LatentPlan

TABLES = torch.tensor([[7, 3, 5], [2, 9, 10**6]], dtype=torch.int64)


def test_positions_and_slots_are_those_of_a_loop():
    plan = LatentPlan.of(TABLES, [30, 0], [3, 5])
    places = [(0, 30), (0, 31), (0, 32), *((1, position) for position in range(5))]
    assert list(zip(plan.sequence_t.tolist(), plan.position_t.tolist(), strict=True)) == places
    assert plan.slots(16).tolist() == [int(TABLES[row, position // 16]) * 16 + position % 16 for row, position in places]
    assert (plan.lengths, plan.starts, plan.longest, plan.num_tokens) == ((3, 5), (30, 0), 33, 8)
    assert plan.tables_bj.dtype == plan.position_t.dtype == plan.sequence_t.dtype == torch.int32


def test_slots_are_made_once():
    plan = LatentPlan.of(TABLES, [30, 0], [3, 5])
    assert plan.slots(16) is plan.slots(16)
    assert plan.slots(32) is not plan.slots(16)


def test_decoding_is_planned_alike_from_the_device_alone():
    known, blind = LatentPlan.of(TABLES, [30, 4], [1, 1]), LatentPlan.decode(TABLES, torch.tensor([30, 4]))
    for name in ("tables_bj", "sequence_t", "position_t"):
        assert torch.equal(getattr(known, name), getattr(blind, name))
    assert torch.equal(known.slots(16), blind.slots(16))
    assert known.lengths is None
    assert blind.lengths is None
    assert (known.context_bound(16), blind.context_bound(16)) == (31, 48)


class _NoValues(TorchDispatchMode):
    """Refuses what a CUDA graph cannot record: a number read by the host, and shapes that depend on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.index.Tensor):
            assert func is torch.ops.aten.index.Tensor, func
            assert all(part is None or part.dtype != torch.bool for part in args[1])
        return func(*args, **(kwargs or {}))


def test_no_value_is_read_while_decoding_is_planned():
    tables_bj, position_b = TABLES.int(), torch.tensor([30, -1])
    with _NoValues():
        plan = LatentPlan.decode(tables_bj, position_b)
        slot_t = plan.slots(16)
    assert slot_t.tolist() == [3 * 16 + 14, -1]


def test_control_the_watch_sees_a_read_value():
    with _NoValues(), pytest.raises(AssertionError):
        LatentPlan.decode(TABLES, torch.tensor([30, -1])).slots(16).max().item()


@pytest.mark.parametrize(
    ("starts", "lengths", "message"),
    [
        ([1], [1], "do not fit"),
        ([0, 0], [1], "do not fit"),
        ([0, 0], [1, 0], "needs a new token"),
        ([0, -1], [1, 1], "start of at least 0"),
    ],
)
def test_what_does_not_fit_is_refused(starts, lengths, message):
    with pytest.raises(ValueError, match=message):
        LatentPlan.of(TABLES, starts, lengths)
