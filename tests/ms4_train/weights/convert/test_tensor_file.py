"""Files made at full size and filled in pieces are what safetensors would have written; copies agree however they are made."""

import errno
import os
import threading

import pytest
import torch
from safetensors.torch import load_file

from ms4_train.errors import WeightsError
from ms4_train.model import TextConfig
from ms4_train.weights.convert import tensor_file
from ms4_train.weights.convert.plan import plan_files
from ms4_train.weights.convert.tensor_file import bytes_of, copy_range, create, is_as_planned, write_at
from ms4_train.weights.layouts.pieces import ModelConfig
from ms4_train.weights.layouts.tables import Layout, LayoutTable, TensorSpec

SPECS = {"a": TensorSpec("BF16", (3, 5)), "b": TensorSpec("F32", ()), "c": TensorSpec("F8_E4M3", (4, 4))}


def planned():
    return plan_files(LayoutTable(Layout.HF, ModelConfig(TextConfig())), specs=SPECS).files[0]


def test_tensors_written_at_their_places_are_read_by_safetensors(tmp_path):
    tensors = {"a": torch.randn(3, 5).bfloat16(), "b": torch.tensor(2.5), "c": torch.randn(4, 4).to(torch.float8_e4m3fn)}
    plan = planned()
    create(tmp_path / "f", plan)
    assert not load_file(tmp_path / "f")["a"].any()
    descriptor = os.open(tmp_path / "f", os.O_WRONLY)
    for name in ("c", "a", "b"):
        write_at(descriptor, bytes_of(tensors[name]), plan.spans[name][0])
    os.close(descriptor)
    found = load_file(tmp_path / "f")
    assert all(torch.equal(found[name].float(), tensors[name].float()) and found[name].dtype == tensors[name].dtype for name in tensors)
    with pytest.raises(FileExistsError):
        create(tmp_path / "f", plan)


def test_a_file_of_another_size_or_header_is_not_as_planned(tmp_path):
    plan = planned()
    assert not is_as_planned(tmp_path / "f", plan)
    create(tmp_path / "f", plan)
    assert is_as_planned(tmp_path / "f", plan)
    os.truncate(tmp_path / "f", plan.num_bytes - 1)
    assert not is_as_planned(tmp_path / "f", plan)
    os.truncate(tmp_path / "f", plan.num_bytes)
    with (tmp_path / "f").open("r+b") as handle:
        handle.seek(20)
        handle.write(b"?")
    assert not is_as_planned(tmp_path / "f", plan)


def copied(tmp_path, size, start, stop):
    data = os.urandom(size)
    (tmp_path / "source").write_bytes(data)
    (tmp_path / "target").write_bytes(bytes(size + 100))
    source, target = os.open(tmp_path / "source", os.O_RDONLY), os.open(tmp_path / "target", os.O_WRONLY)
    ranges = []
    try:
        copy_range(source, start, stop, target, 7, wrote=lambda a, b: ranges.append((a, b)), file=tmp_path / "source")
    finally:
        os.close(source)
        os.close(target)
    assert (tmp_path / "target").read_bytes()[7 : 7 + stop - start] == data[start:stop]
    assert (tmp_path / "target").read_bytes()[:7] == bytes(7)
    assert not any((tmp_path / "target").read_bytes()[7 + stop - start :])
    assert [a for a, _ in ranges] == [7, *(b for _, b in ranges[:-1])]
    assert ranges[-1][1] == 7 + stop - start
    return len(ranges)


@pytest.mark.parametrize("how", ["kernel", "other disk", "says nothing"])
def test_ranges_are_copied_and_reported(tmp_path, monkeypatch, how):
    monkeypatch.setattr(tensor_file, "COPY_BYTES", 1000)
    calls = []

    def refusing(*arguments):
        calls.append(arguments)
        if how == "says nothing":
            return 0
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    if how != "kernel":
        monkeypatch.setattr(os, "copy_file_range", refusing)
    assert copied(tmp_path, 10_000, 123, 9_876) == 10
    assert len(calls) == (how != "kernel")  # asked once, then not again


def test_a_source_that_ends_early_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"source.*ends early"):
        copied(tmp_path, 100, 50, 120)


def test_other_errors_are_not_hidden(tmp_path, monkeypatch):
    def failing(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", failing)
    with pytest.raises(OSError, match="No space"):
        copied(tmp_path, 100, 0, 100)


def test_threads_write_side_by_side(tmp_path):
    (tmp_path / "f").write_bytes(bytes(1 << 20))
    descriptor = os.open(tmp_path / "f", os.O_WRONLY)
    parts = [os.urandom(1 << 16) for _ in range(16)]
    threads = [threading.Thread(target=write_at, args=(descriptor, memoryview(part), i << 16)) for i, part in enumerate(parts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(descriptor)
    assert (tmp_path / "f").read_bytes() == b"".join(parts)
