"""Which engine a mesh gets."""

import pytest
from support.models import tiny_model

from ms4_train.config.schema import ParallelSection, TrainingSection
from ms4_train.errors import TrainingError
from ms4_train.parallel import Mesh, make_engine
from ms4_train.parallel.local import LocalEngine


def test_one_process_gets_a_plain_optimizer():
    engine = make_engine(tiny_model(), Mesh(), training=TrainingSection(), parallel=ParallelSection(zero_stage=2))
    assert isinstance(engine, LocalEngine)


def test_a_frozen_model_is_refused():
    with pytest.raises(TrainingError, match="add an adapter section"):
        make_engine(tiny_model().requires_grad_(False), Mesh(), training=TrainingSection(), parallel=ParallelSection())


def test_several_processes_get_deepspeed_unless_stage_0(light_report, deepspeed_report):
    assert {report["stage_0"]["engine"] for report in light_report} == {"LocalEngine"}
    assert {report["full"]["engine"] for report in deepspeed_report} == {"DeepSpeedEngine"}
