"""Layouts of processes that cannot work are refused with choices that can, and none nearer."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms4_train.config.mesh import check_mesh, expert_parallel_sizes, nearest, planned_processes
from ms4_train.config.schema import ParallelSection
from ms4_train.errors import ParallelError

KEY = "parallel.expert_parallel_size"


def refusal(processes, num_experts=None, **section):
    with pytest.raises(ParallelError) as caught:
        check_mesh(ParallelSection(**section), processes, num_experts)
    return caught.value


def accepts(processes, num_experts=None, **section):
    try:
        check_mesh(ParallelSection(**section), processes, num_experts)
    except ParallelError:
        return False
    return True


@pytest.mark.parametrize(
    ("processes", "num_experts", "size", "said"),
    [
        (8, None, 6, "there are 8 processes, which cannot be divided into groups of 6. Fix: use 4 or 8, or start a multiple of 6"),
        (8, 128, 6, "a layer of the model has 128 experts, and there are 8 processes: each rank must hold equally many. Fix: use 4 or 8."),
        (12, 128, 8, "there are 12 processes, which cannot be divided into groups of 8. Fix: use 4, or start a multiple of 8"),
        (2, 32, 64, "a layer of the model has 32 experts, and there are 2 processes: each rank must hold equally many. Fix: use 2."),
        (8, 128, 16, "cannot be divided into groups of 16. Fix: use 8, or start a multiple of 16"),
        (1, None, 8, "there is 1 process, which cannot be divided into groups of 8. Fix: use 1, or start a multiple of 8"),
        (
            12,
            128,
            3,
            "a layer of the model has 128 experts, and there are 12 processes: each rank must hold equally many. Fix: use 2 or 4.",
        ),
        (12, 128, 12, "Fix: use 4."),
        (
            256,
            128,
            256,
            "a layer of the model has 128 experts, and there are 256 processes: each rank must hold equally many. Fix: use 128.",
        ),
        (None, 8, 3, "a layer of the model has 8 experts: each rank must hold equally many. Fix: use 2 or 4."),
    ],
)
def test_the_nearest_choices_are_named(processes, num_experts, size, said):
    error = refusal(processes, num_experts, expert_parallel_size=size)
    assert error.key == KEY
    assert f"is {size}, but" in str(error)
    assert said in str(error)


@given(st.integers(1, 256), st.one_of(st.none(), st.integers(1, 256)), st.integers(1, 300))
def test_every_offered_choice_fits_and_none_is_nearer(processes, num_experts, size):
    """The oracle tries every size in turn."""
    fitting = [each for each in range(1, 301) if processes % each == 0 and (num_experts is None or num_experts % each == 0)]
    assert accepts(processes, num_experts, expert_parallel_size=size) == (size in fitting)
    if size in fitting:
        return
    fix = str(refusal(processes, num_experts, expert_parallel_size=size)).partition("Fix: use ")[2]
    offered = [int(number) for number in re.match(r"[\d or]+", fix).group().split(" or ")]  # type: ignore[union-attr]
    below, above = [each for each in fitting if each < size], [each for each in fitting if each > size]
    assert offered == below[-1:] + above[:1]
    assert all(accepts(processes, num_experts, expert_parallel_size=each) for each in offered)


def test_control_a_choice_that_is_not_the_nearest_would_be_seen():
    assert nearest(6, [1, 2, 4, 8, 16]) == [4, 8]
    assert expert_parallel_sizes(8, 12) == [1, 2, 4]
    assert expert_parallel_sizes(None, None) == [1]


def test_data_parallel_size_is_the_number_of_processes():
    assert accepts(16, data_parallel_size=16, expert_parallel_size=8)
    assert accepts(16, expert_parallel_size=8)
    assert accepts(None, data_parallel_size=16)
    error = refusal(8, data_parallel_size=16)
    assert error.key == "parallel.data_parallel_size"
    assert "is 16, but there are 8 processes. Fix: set it to 8 or leave it out, or start 16 (--nproc 16" in str(error)


def test_a_plan_is_for_the_processes_that_the_file_asks_for():
    asks = ParallelSection(data_parallel_size=16)
    assert [planned_processes(asks), planned_processes(asks, 1), planned_processes(asks, 8)] == [16, 16, 8]
    assert [planned_processes(ParallelSection()), planned_processes(ParallelSection(), 1)] == [None, 1]


@pytest.mark.parametrize(
    ("section", "processes", "key", "fix"),
    [
        ({"offload_optimizer": "cpu", "zero_stage": 0}, 2, "offload_optimizer", "zero_stage to 1, or offload_optimizer to none"),
        ({"offload_parameters": "cpu", "zero_stage": 2}, 2, "offload_parameters", "zero_stage to 3, or offload_parameters to none"),
        ({"offload_parameters": "cpu", "zero_stage": 0}, None, "offload_parameters", "zero_stage to 3"),
        ({"offload_optimizer": "cpu", "zero_stage": 2}, 1, "offload_optimizer", "start 2 processes or more"),
        ({"offload_parameters": "cpu", "zero_stage": 3}, 1, "offload_parameters", "start 2 processes or more"),
    ],
)
def test_offloading_that_would_do_nothing_is_refused(section, processes, key, fix):
    error = refusal(processes, **section)
    assert error.key == f"parallel.{key}"
    assert fix in str(error)


def test_offloading_that_works_is_accepted():
    assert all(accepts(2, offload_optimizer="cpu", zero_stage=stage) for stage in (1, 2, 3))
    assert accepts(2, offload_optimizer="cpu", offload_parameters="cpu", zero_stage=3)
    assert accepts(2, zero_stage=0)
