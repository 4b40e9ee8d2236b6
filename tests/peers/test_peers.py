"""A missing environment of peers is said, never passed over in silence; a peer that fails says why."""

from __future__ import annotations

import pytest
from support import peers


def test_absence_skips_with_the_reason_and_fails_where_peers_are_required(monkeypatch, tmp_path):
    monkeypatch.setattr(peers, "PYTHON", tmp_path / "absent")
    monkeypatch.delenv("MS4_REQUIRE_PEERS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="make peers"):
        peers.require_peers()
    monkeypatch.setenv("MS4_REQUIRE_PEERS", "1")
    with pytest.raises(pytest.fail.Exception, match="make peers"):
        peers.require_peers()


@pytest.mark.parametrize(
    ("program", "timeout_s", "message"),
    [
        ("import sys; print('what went wrong'); sys.exit(3)", 30, "ended with 3(.|\n)*what went wrong"),
        ("import time; print('loading', flush=True); time.sleep(60)", 1.5, "did not answer within 1.5 s(.|\n)*loading"),
    ],
)
def test_a_peer_that_fails_says_why(monkeypatch, tmp_path, program, timeout_s, message):
    import sys
    from pathlib import Path

    (tmp_path / "program.py").write_text(program)
    monkeypatch.setattr(peers, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(peers, "VLLM_PROGRAM", tmp_path / "program.py")
    with pytest.raises(pytest.fail.Exception, match=message):
        peers.vllm_greedy(tmp_path, [[1]], 1, timeout_s=timeout_s)
