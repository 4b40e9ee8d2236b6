"""A few launches carry many checks each; the tests read what the ranks wrote."""

import json
from pathlib import Path

import pytest
from support.distributed import run_ranks

HERE = Path(__file__).parent
DEEPSPEED_CHECKS = (
    "full resume lora frozen_experts checkpointing stage_1 stage_3 stage_3_lora bf16 bf16_stage_1 data_parallel without_marks not_finite "
    "environment"
)


def _reports(worker, folder, ranks, *arguments):
    outputs = run_ranks(HERE / worker, str(folder), *arguments, ranks=ranks)
    return [{**json.loads((folder / f"{rank}.json").read_text()), "output": output} for rank, output in enumerate(outputs)]


@pytest.fixture(scope="session")
def light_report(tmp_path_factory):
    """Findings of light_worker.py on two ranks, one dict per rank."""
    return _reports("light_worker.py", tmp_path_factory.mktemp("light"), 2)


@pytest.fixture(scope="session")
def deepspeed_folder(tmp_path_factory):
    """Where the two DeepSpeed ranks leave their findings and state."""
    return tmp_path_factory.mktemp("deepspeed")


@pytest.fixture(scope="session")
def deepspeed_report(deepspeed_folder):
    """Findings of deepspeed_worker.py on two ranks that share the experts."""
    return _reports("deepspeed_worker.py", deepspeed_folder, 2, "2", *DEEPSPEED_CHECKS.split())


@pytest.fixture(scope="session")
def four_rank_report(tmp_path_factory):
    """Findings on four ranks: two halves of the experts, each held twice."""
    return _reports("deepspeed_worker.py", tmp_path_factory.mktemp("four"), 4, "2", "resume")
