"""The launch examples are read by accelerate's own loader, and their processes fit what their comments start."""

import re
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from ms4_train.parallel import Mesh

LAUNCH = sorted((Path(__file__).parents[3] / "configs" / "launch").glob("*.yaml"))


def test_there_are_examples_for_two_cpu_ranks_and_for_a_node():
    assert [path.name for path in LAUNCH] == ["one_node_8_gpus.yaml", "two_cpu_ranks.yaml"]


@pytest.mark.parametrize("path", LAUNCH, ids=lambda path: path.stem)
def test_accelerate_reads_it_and_starts_what_the_comment_says(path):
    config = load_config_from_file(str(path))
    assert config.distributed_type == "MULTI_GPU"  # the kind that accelerate hands to torchrun
    assert config.mixed_precision == "no"
    text = path.read_text()
    sizes = {int(size) for size in re.findall(r"expert_parallel_size=(\d+)", text)}
    assert sizes == {int(size) for size in re.findall(r"--nproc-per-node (\d+)", text)} == {config.num_processes}
    assert Mesh(0, config.num_processes, *sizes).expert_range(128) == (0, 128 // config.num_processes)
