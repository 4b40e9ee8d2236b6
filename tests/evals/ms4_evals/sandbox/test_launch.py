"""Names that stay inside, files that cannot be written, descriptors that are closed."""

from __future__ import annotations

import os

import pytest

from ms4_evals.sandbox.base import Limits
from ms4_evals.sandbox.launch import ADDRESS_SLACK_BYTES, Descriptors, checked_files, keeper_command, memory_file
from ms4_train.errors import EvaluationError


@pytest.mark.parametrize("name", ["", "/etc/x", "../x", "a/../../x", "a\0b", "a/", ".."])
def test_names_that_leave_the_folder(name):
    with pytest.raises(EvaluationError, match="file name") as caught:
        checked_files({name: b""})
    assert caught.value.fix


def test_names_that_stay():
    assert checked_files({"main.py": b"x", "a/b.txt": b""}) == {"main.py": b"x", "a/b.txt": b""}
    with pytest.raises(EvaluationError, match="65 files"):
        checked_files({str(number): b"" for number in range(65)})


@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_a_memory_file_can_only_be_read(size):
    data = os.urandom(size)
    descriptor = memory_file(data)
    with os.fdopen(descriptor, "rb") as file:
        for action in (lambda: os.write(descriptor, b"x"), lambda: os.ftruncate(descriptor, size + 1)):
            with pytest.raises(PermissionError):
                action()
        assert file.read() == data


def test_descriptors_are_closed_but_for_those_kept():
    opened = Descriptors()
    kept, closed = opened.pipe()
    third = opened.add(memory_file(b""))
    opened.keep(kept)
    opened.close()
    os.close(kept)
    for descriptor in (closed, third):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_limits_reach_the_kernel_too():
    """The watcher looks some forty times a second; between two looks the kernel's own limits hold."""
    limits = Limits(cpu_seconds=2.5, memory_bytes=100 << 20, file_bytes=1 << 20, open_files=9)
    command = keeper_command("python", 7, limits, ["python", "main.py"], is_isolated=True, processes=5)
    values = dict(word.split("=") for word in command[command.index("7") + 1 : command.index("--")])
    assert values["address_bytes"] == str((100 << 20) + ADDRESS_SLACK_BYTES)
    assert values["cpu_seconds"] == "4"
    assert (values["processes"], values["file_bytes"], values["open_files"]) == ("5", str(1 << 20), "9")
    assert command[-2:] == ["python", "main.py"]
