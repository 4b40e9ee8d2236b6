"""What DeepSpeed is told about experts, and what happens when it is not told."""

import sys

import pytest
import torch
from support.models import tiny_model

from ms4_train.config.schema import ParallelSection, TrainingSection
from ms4_train.errors import MissingDependencyError, ParallelError
from ms4_train.parallel import Mesh, make_engine
from ms4_train.parallel.deepspeed_setup import MAX_BUCKET_ELEMENTS, engine_config, optimizer_groups
from ms4_train.parallel.parameters import trained_parameters


def test_without_the_marks_training_goes_wrong(deepspeed_report):
    """Negative control of every comparison in test_deepspeed_engine.py: DeepSpeed left alone makes no error, only wrong numbers."""
    for report in deepspeed_report:
        wrong = report["without_marks"]
        assert wrong["loss"] > 1e-2
        assert wrong["gradient"] > 0.1
        assert wrong["weight"] > 0.1
        assert not wrong["held_once"]


def test_frozen_experts_stay_different_on_each_rank(deepspeed_report):
    """Adapters on attention alone: no optimizer group holds experts, yet rank 0's experts must not be broadcast over rank 1's."""
    for report in deepspeed_report:
        assert report["frozen_experts"]["weight"] < 1e-5
        assert report["frozen_experts"]["gradient"] < 1e-4
        assert report["frozen_experts"]["parameters"] == 20


def test_nothing_is_compiled_and_nothing_printed(deepspeed_report):
    """The only lines are DeepSpeed's warnings about the two steps with infinite gradients."""
    for report in deepspeed_report:
        assert report["environment"] == {"shm_op": "None", "initialized": True}
        lines = [line for line in report["output"].splitlines() if "Skipping step" not in line]
        assert lines == []


def test_groups_keep_experts_apart():
    trained = trained_parameters(tiny_model(), Mesh(0, 2, 2, 0))
    groups = optimizer_groups(trained, "ep_size_2")
    assert sum(len(group["params"]) for group in groups) == len(trained)
    experts = [group for group in groups if group.get("moe")]
    assert [len(group["params"]) for group in experts] == [4, 0]
    assert {group["name"] for group in experts} == {"ep_size_2"}
    assert all(parameter.ndim == 3 for parameter in experts[0]["params"])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_is_asked_for_by_the_type_of_the_trained_parameters(stage):
    narrow = engine_config(trained_parameters(tiny_model(dtype=torch.bfloat16), Mesh()), ParallelSection(zero_stage=stage))
    assert narrow["bf16"]["enabled"]
    assert narrow["zero_optimization"]["stage"] == stage
    wide = engine_config(trained_parameters(tiny_model(), Mesh()), ParallelSection(zero_stage=stage))
    assert "bf16" not in wide
    assert wide["zero_optimization"]["reduce_bucket_size"] == sum(p.numel() for p in tiny_model().parameters()) < MAX_BUCKET_ELEMENTS


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.float16, torch.float16)])
def test_types_that_cannot_be_trained_are_refused(dtypes):
    model = tiny_model()
    model.model.to(dtypes[0])
    model.lm_head.to(dtypes[1])
    with pytest.raises(ParallelError, match=r"model.dtype: .*torch\.(float16|float32)"):
        engine_config(trained_parameters(model, Mesh()), ParallelSection(zero_stage=2))


def test_a_missing_deepspeed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(MissingDependencyError, match="pip install deepspeed"):
        make_engine(tiny_model(), Mesh(0, 2), training=TrainingSection(), parallel=ParallelSection())
