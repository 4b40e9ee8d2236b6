"""The runner on two processes that share the experts, against one process with all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.distributed import run_ranks


@pytest.mark.slow
def test_ranks_with_different_work_compute_what_one_process_does(tmp_path):
    """gloo; fp32 in another order of sums. A rank without work that stayed away from an exchange would hang the other."""
    run_ranks(Path(__file__).parent / "runner_worker.py", str(tmp_path), timeout=200)
    for rank in range(2):
        report = json.loads((tmp_path / f"{rank}.json").read_text())
        assert report["experts"] == 4
        assert report["error"] < 2e-5
