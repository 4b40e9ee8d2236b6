"""A few launches carry many checks each; the tests read what the ranks wrote."""

import fcntl
import json
import os
from pathlib import Path

import pytest
from support.distributed import run_ranks

HERE = Path(__file__).parent
DEEPSPEED_CHECKS = (
    "matrix full resume lora frozen_experts checkpointing stage_1 stage_3 stage_3_lora stage_3_targets quantised stage_3_quantised "
    "bf16 bf16_stage_1 odd_sizes data_parallel vision stage_3_vision stage_3_frozen_vision without_marks not_finite environment"
)

FOUR_RANK_CHECKS = "resume stage_1 stage_3 stage_3_lora bf16 odd_sizes"


def _reports(base, worker, ranks, *arguments):
    """(folder, one dict per rank). Under pytest-xdist the first process that asks launches the ranks and the others wait for it."""
    distributed = "PYTEST_XDIST_WORKER" in os.environ
    folder = (base.parent if distributed else base) / f"{Path(worker).stem}-{ranks}"
    folder.mkdir(exist_ok=True)
    done = folder / "done"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            for rank, output in enumerate(run_ranks(HERE / worker, str(folder), *arguments, ranks=ranks)):
                (folder / f"{rank}.txt").write_text(output)
            done.touch()
    outputs = [(folder / f"{rank}.txt").read_text() for rank in range(ranks)]
    return folder, [{**json.loads((folder / f"{rank}.json").read_text()), "output": output} for rank, output in enumerate(outputs)]


@pytest.fixture(scope="session")
def light_report(tmp_path_factory):
    """Findings of light_worker.py on two ranks, one dict per rank."""
    return _reports(tmp_path_factory.getbasetemp(), "light_worker.py", 2)[1]


@pytest.fixture(scope="session")
def exchange_reports(light_report, tmp_path_factory):
    """Findings of ``support/exchange_checks.py`` on ranks that each hold a share of the experts, by number of ranks."""
    four = _reports(tmp_path_factory.getbasetemp(), "exchange_worker.py", 4, "4")[1]
    return {2: [report["exchange"] for report in light_report], 4: four}


@pytest.fixture(scope="session")
def _two_deepspeed_ranks(tmp_path_factory):
    return _reports(tmp_path_factory.getbasetemp(), "deepspeed_worker.py", 2, "2", *DEEPSPEED_CHECKS.split())


@pytest.fixture(scope="session")
def deepspeed_folder(_two_deepspeed_ranks):
    """Where the two DeepSpeed ranks left the state of the checks ``full`` and ``lora``."""
    return _two_deepspeed_ranks[0]


@pytest.fixture(scope="session")
def deepspeed_report(_two_deepspeed_ranks):
    """Findings of deepspeed_worker.py on two ranks that share the experts."""
    return _two_deepspeed_ranks[1]


@pytest.fixture(scope="session")
def four_rank_report(tmp_path_factory):
    """Findings on four ranks: two halves of the experts, each held twice."""
    return _reports(tmp_path_factory.getbasetemp(), "deepspeed_worker.py", 4, "2", *FOUR_RANK_CHECKS.split())[1]


@pytest.fixture(scope="session")
def zero3_report(tmp_path_factory):
    """Findings of zero3_worker.py on two ranks that share the experts; the rest of its checks are slow."""
    return _reports(tmp_path_factory.getbasetemp(), "zero3_worker.py", 2, "2", "files_brief", "offload_brief")[1]
