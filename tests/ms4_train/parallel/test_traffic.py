"""Bytes counted by the exchange: against plain counting of (token, other rank) pairs, and against what the kernel saw pass."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.distributed import rank_environment
from support.exchange_cases import ROUTINGS

from ms4_train.parallel import Mesh, traffic
from ms4_train.parallel.traffic import ExpertBytes, Traffic

HERE = Path(__file__).parent


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("routing", [*ROUTINGS, "bf16, twice"])
def test_bytes_equal_a_count_by_hand(exchange_reports, ranks, routing):
    """[forward, backward] of each kind; each rank's own bytes, to the byte."""
    for report in exchange_reports[ranks]:
        counted, by_hand = report["operation"]["bytes"][routing]
        assert counted == by_hand
        assert counted["dispatch"][0] > 0 or routing != "random"


def test_all_that_leaves_for_experts_arrives_there(exchange_reports):
    for reports in exchange_reports.values():
        for routing in ROUTINGS:
            counted = [report["operation"]["bytes"][routing][0] for report in reports]
            assert sum(count["dispatch"][0] for count in counted) == sum(count["combine"][0] for count in counted)


def test_a_count_starts_again_when_it_is_taken():
    traffic.take()
    traffic.count("dispatch", 3)
    traffic.count("dispatch", 4)
    traffic.count("metadata", 5, backward=True)
    assert traffic.take() == Traffic(ExpertBytes(dispatch=7), ExpertBytes(metadata=5))
    assert traffic.take() == Traffic()


def test_metrics_add_up_passes_and_ranks(light_report):
    """Rank r counted r + 1 bytes there, 10 back in the forward pass and 20 in the backward pass."""
    for report in light_report:
        assert report["traffic"] == {"expert_bytes_dispatch": 3, "expert_bytes_combine": 60, "expert_bytes_metadata": 0}


def test_one_process_has_no_such_metrics():
    assert traffic.metrics(Traffic(ExpertBytes(1, 2, 3)), Mesh()) == {}


@pytest.mark.slow
def test_the_kernel_counts_what_we_count(tmp_path):
    """By the loopback device of a network of its own, where the system grants one; elsewhere other programs' bytes may come on top.

    Above ours are headers and acknowledgements, 132 bytes for up to 64 KiB, and the barriers at both ends: less than 2 % of 100 MB.
    """
    isolated = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    can_isolate = subprocess.run([*isolated, "true"], capture_output=True).returncode == 0
    command = [*(isolated if can_isolate else []), sys.executable, str(HERE / "wire_worker.py"), str(tmp_path)]
    environment = {key: value for key, value in rank_environment(0, 1, 0).items() if key not in ("RANK", "WORLD_SIZE")}
    subprocess.run(command, check=True, env=environment, timeout=300)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    counted, seen = sum(rank["counted"] for rank in ranks), ranks[0]["seen"]
    assert counted > 50e6
    assert counted < seen
    assert seen < 1.02 * counted or not can_isolate
    # Negative control: a count for each (token, expert) pair would be far off.
    assert sum(rank["pair_by_pair"] for rank in ranks) > 1.2 * seen or not can_isolate
