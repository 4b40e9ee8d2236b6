"""Names that stay inside, files that cannot be written, descriptors that are closed."""

from __future__ import annotations

import os

import pytest

from ms4_evals.sandbox.launch import Descriptors, checked_files, memory_file
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
