"""The launch examples are read by accelerate's own loader, and their processes fit what their comments start."""

import re
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from ms4_train.config import load_run
from ms4_train.parallel import Mesh

ROOT = Path(__file__).parents[3]
LAUNCH = sorted((ROOT / "configs" / "launch").glob("*.yaml"))


def test_there_are_examples_for_two_cpu_ranks_a_node_and_several():
    assert [path.name for path in LAUNCH] == ["nodes_8_gpus.yaml", "one_node_8_gpus.yaml", "two_cpu_ranks.yaml"]


@pytest.mark.parametrize("path", LAUNCH, ids=lambda path: path.stem)
def test_accelerate_reads_it_and_starts_what_the_comment_says(path):
    config = load_config_from_file(str(path))
    assert config.distributed_type == "MULTI_GPU"  # the kind that accelerate hands to torchrun
    assert config.mixed_precision == "no"
    text = path.read_text()
    per_node = {int(size) for size in re.findall(r"--nproc-per-node (\d+)", text)}
    assert per_node == {config.num_processes // config.num_machines}
    if config.num_machines == 1:
        sizes = {int(size) for size in re.findall(r"expert_parallel_size=(\d+)", text)}
        assert sizes == per_node
    else:
        assert {int(count) for count in re.findall(r"--nnodes (\d+) ", text)} == {config.num_machines}
    for run in re.findall(r"configs/train/small4/\w+\.yaml", text):
        assert load_run(ROOT / run).parallel.data_parallel_size == config.num_processes
    assert Mesh(0, config.num_processes, *per_node).expert_range(128) == (0, 128 // min(per_node))
