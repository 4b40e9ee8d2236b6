"""Two gloo ranks that see different folders under the same path: a refusal on both, and nothing is renamed."""

import json
import socket
from pathlib import Path

import pytest
from support.distributed import run_ranks

RANKS = 2
BOTH = ["step-000001", "step-000002"]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verdict")
    run_ranks(Path(__file__).with_name("verdict_worker.py"), str(folder), ranks=RANKS)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("case", ["both see it", "and then it can"])
def test_control_what_both_see_is_taken(reports, case):
    for report in reports:
        assert report[case] == {"step": 2, "error": None, "names": BOTH}


HOST = socket.gethostname()
UNSEEN = f"rank 1 (host {HOST}) does not see "


@pytest.mark.parametrize(
    ("case", "path", "words"),
    [
        ("the second sees nothing", "run/step-000002", [UNSEEN, "one folder that all machines see", f"mount it on {HOST}"]),
        ("the second sees nothing of a named one", "run/step-000001", [UNSEEN, "one folder that all machines see"]),
        ("the first sees nothing", "run/step-000002", [f"rank 0 (host {HOST}) does not see this checkpoint; rank 1"]),
        ("the second sees a damaged copy", "run/step-000002/", [UNSEEN, "SHA-256 differs"]),
        ("the second cannot read", "run/step-000002/", [f"on rank 1 (host {HOST}): Stale file handle", "name another checkpoint"]),
    ],
)
def test_what_one_rank_does_not_see_is_refused_on_both(reports, case, path, words):
    for report in reports:
        kind, text, on_all_ranks = report[case]["error"]
        assert (kind, on_all_ranks) == ("CheckpointError", True)
        assert text.startswith(path)
        assert all(word in text for word in [*words, "renamed"]), text
        assert report[case]["names"] == BOTH


def test_control_damage_is_set_aside(reports):
    """A flipped bit and a deleted file, each in what falls to the one rank or the other."""
    for report in reports:
        kind, text, on_all_ranks = report["damage"]["error"]
        assert (kind, on_all_ranks) == ("CheckpointError", True)
        assert "no good checkpoint is left; 2 corrupt ones" in text
        assert report["damage"]["names"] == ["step-000001.quarantine", "step-000002.quarantine"]
