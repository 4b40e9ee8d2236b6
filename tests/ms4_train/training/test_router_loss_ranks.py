"""Router losses on two ranks that share the experts, against one process that holds both ranks' rows in one micro batch.

Tolerances as in ``test_engine_recipe.py``: fp32 sums in another order; control: without the losses the gradient's norm is another one.
"""

from __future__ import annotations

import pytest
from support.distributed import run_torchrun
from support.sft_files import metrics, sft_run, write_files

from ms4_recipes import sft
from ms4_train.config import to_yaml

LOSSES = {"train_router": True, "router_aux_loss_coef": 0.5, "router_z_loss_coef": 0.1}
TRAINING = {"max_steps": 3, "learning_rate": 1e-3, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("router-ranks"))


@pytest.fixture(scope="module")
def one(folder):
    """Two packed rows in one micro batch of one process."""
    for name, losses in (("one", LOSSES), ("plain", {"train_router": True})):
        sft.run(sft_run(folder, name, training={**TRAINING, **losses, "per_device_train_batch_size": 2}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_equal_one_process(folder, one, stage):
    name = f"two-{stage}"
    config = sft_run(folder, name, training={**TRAINING, **LOSSES}, parallel={"expert_parallel_size": 2, "zero_stage": stage})
    (folder / f"{name}.yaml").write_text(to_yaml(config))
    run_torchrun("-m", "ms4_train.cli", "train", str(folder / f"{name}.yaml"))
    for key, tolerance in (("loss", 1e-5), ("router_aux_loss", 1e-5), ("router_z_loss", 1e-5), ("grad_norm", 1e-4)):
        assert metrics(folder, name, key) == pytest.approx(metrics(folder, "one", key), rel=tolerance), key
    assert metrics(folder, "plain", "grad_norm")[1] != pytest.approx(metrics(folder, "one", "grad_norm")[1], rel=1e-2)
