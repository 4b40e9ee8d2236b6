"""bubblewrap passes the whole suite; no sandbox, and one whose limits are off, do not."""

from __future__ import annotations

import pytest

from ms4_evals.sandbox.base import Limits
from ms4_evals.sandbox.conformance import check_sandbox
from ms4_evals.sandbox.unsafe import UnsafeSandbox


def test_bubblewrap_passes(sandbox):
    assert [str(finding) for finding in check_sandbox(sandbox)] == []


@pytest.fixture(scope="module")
def found_without_a_sandbox():
    with UnsafeSandbox() as unsafe:
        return check_sandbox(unsafe)


@pytest.mark.parametrize("name", ["host-files", "host-writes", "network", "processes-hidden", "host"])
def test_control_without_isolation_the_suite_finds_it(found_without_a_sandbox, name):
    findings = [finding for finding in found_without_a_sandbox if finding.check == name]
    assert findings
    assert name in str(findings[0])


def test_control_the_limits_that_need_no_isolation_hold_without_it(found_without_a_sandbox):
    names = {finding.check for finding in found_without_a_sandbox}
    assert not names & {"runs", "exit-code", "signal", "wall-time", "cpu-time", "memory", "output", "descendants", "session", "environment"}


class Loose(UnsafeSandbox):
    """Whatever limits are asked for, others hold."""

    def run(self, files, arguments, *, stdin=b"", limits=None):
        held = Limits(wall_seconds=0.8, cpu_seconds=60.0, processes=200, file_bytes=64 << 20, open_files=2000)
        return super().run(files, arguments, stdin=stdin, limits=held)


LIMIT_CHECKS = ("cpu-time", "processes", "file-size", "files-together", "open-files")


def test_control_limits_that_do_not_hold_are_found():
    with Loose() as loose:
        assert {finding.check for finding in check_sandbox(loose, LIMIT_CHECKS)} == set(LIMIT_CHECKS)
