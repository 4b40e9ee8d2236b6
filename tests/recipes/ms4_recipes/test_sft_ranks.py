"""The recipe on two ranks (experts spread over both, ZeRO 2), and going on with one."""

import pytest
import torch
from safetensors.torch import load_file
from support.distributed import ROOT, run_ranks
from support.sft_files import metrics, sft_run, write_files

from ms4_recipes import sft
from ms4_train.config import to_yaml

ADAPTER = {"r": 4, "target_modules": ["q_b_proj", "o_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}


def configuration(folder, output, *, steps, ranks):
    return sft_run(
        folder,
        output,
        adapter=ADAPTER,
        data={"validation_fraction": 0.1},
        # The same packed rows per step: one on each of two ranks, or two on one.
        training={
            "max_steps": steps,
            "per_device_train_batch_size": 2 // ranks,
            "lr_scheduler_type": "constant",
            "save_strategy": "steps",
            "eval_strategy": "steps",
            "eval_steps": 2,
        },
        parallel={"expert_parallel_size": ranks},
        tracking={"console": False},
    )


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    folder = write_files(tmp_path_factory.mktemp("ranks"))
    (folder / "two.yaml").write_text(to_yaml(configuration(folder, "two", steps=4, ranks=2)))
    printed = run_ranks(ROOT / "ms4_train" / "cli" / "main.py", "train", str(folder / "two.yaml"))
    first_adapter = load_file(folder / "two" / "adapter" / "adapter_model.safetensors")
    sft.run(configuration(folder, "one", steps=6, ranks=1))
    sft.run(configuration(folder, "two", steps=6, ranks=1))
    return folder, printed, first_adapter


def test_two_ranks_then_one_train_like_one(outputs):
    folder, _, _ = outputs
    for key in ("loss", "eval_loss", "grad_norm"):
        one, two = metrics(folder, "one", key), metrics(folder, "two", key)
        assert one.keys() == two.keys()
        assert list(two.values()) == pytest.approx(list(one.values()), rel=1e-5), key
    assert list(metrics(folder, "two")) == [1, 2, 3, 4, 5, 6]


def test_router_load_and_epochs_count_all_ranks(outputs):
    folder, _, _ = outputs
    for key in ("router_max_over_mean", "dead_experts", "epoch"):
        assert metrics(folder, "two", key) == pytest.approx(metrics(folder, "one", key)), key


def test_adapters_are_whole_and_equal(outputs):
    folder, _, first = outputs
    one = load_file(folder / "one" / "adapter" / "adapter_model.safetensors")
    two = load_file(folder / "two" / "adapter" / "adapter_model.safetensors")
    assert {name: tensor.shape for name, tensor in first.items()} == {name: tensor.shape for name, tensor in one.items()}
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-5, msg=name)


def test_only_the_main_rank_speaks_and_counts_whole_experts(outputs):
    folder, (main, other), _ = outputs
    assert "mlp.experts.gate_up_proj  2 modules  8,192 parameters" in main
    assert "trained parameters" not in other
    assert (folder / "two" / "checkpoints" / "step-000006").is_dir()
