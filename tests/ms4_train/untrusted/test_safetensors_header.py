"""safetensors headers: the reference library is the oracle, both for files that are right and for files that are wrong."""

from __future__ import annotations

import json
import struct
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ms4_train.errors import UntrustedInputError
from ms4_train.untrusted import read_safetensors_header, read_safetensors_metadata

TENSORS = {
    "model.layers.0.mlp.experts.down_proj": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "b.bias": np.arange(5, dtype=np.float16),
    "empty": np.zeros((0, 7), dtype=np.int64),
    "scalar": np.array(3.0),
}


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


def write(path, header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(start, stop, dtype="U8", shape=None):
    return {"dtype": dtype, "shape": [stop - start] if shape is None else shape, "data_offsets": [start, stop]}


def test_equals_what_the_library_reads(good):
    header = read_safetensors_header(good)
    raw = good.read_bytes()
    with safe_open(good, "numpy") as reference:
        assert set(header) == set(reference.keys())
        for name, info in header.items():
            tensor = reference.get_tensor(name)
            assert info.shape == tensor.shape
            assert raw[info.start : info.stop] == tensor.tobytes()
    assert header["b.bias"].dtype == "F16"
    assert read_safetensors_metadata(good) == {"format": "pt"}


BAD = {
    "overlap": ({"a": entry(0, 4), "b": entry(2, 6)}, b"x" * 6, "overlaps"),
    "gap": ({"a": entry(0, 4), "b": entry(5, 6)}, b"x" * 6, "gap"),
    "late start": ({"a": entry(1, 4)}, b"x" * 4, "gap"),
    "short file": ({"a": entry(0, 40)}, b"x" * 39, "cut off"),
    "long file": ({"a": entry(0, 4)}, b"x" * 5, "cut off or damaged"),
    "backwards": ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [4, 3]}}, b"x" * 4, "bytes its offsets"),
    "wrong size": ({"a": entry(0, 4, "F32", [2])}, b"x" * 4, "does not take"),
    "huge shape": ({"a": entry(0, 4, "F32", [2**40, 2**40])}, b"x" * 4, "does not take"),
    "negative shape": ({"a": entry(0, 4, "U8", [-2, -2])}, b"x" * 4, "list of sizes"),
    "boolean shape": ({"a": entry(0, 1, "U8", [True])}, b"x", "list of sizes"),
    "fractional offset": ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1.0]}}, b"x", "two positions"),
    "endless offset": ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 2**70]}}, b"x", "two positions"),
    "unknown type": ({"a": entry(0, 4, "PICKLE")}, b"x" * 4, "unknown type"),
    "type is a list": ({"a": {"dtype": [], "shape": [], "data_offsets": [0, 0]}}, b"", "unknown type"),
    "extra field": ({"a": {**entry(0, 4), "x": 1}}, b"x" * 4, "exactly"),
    "missing field": ({"a": {"dtype": "U8", "shape": [4]}}, b"x" * 4, "exactly"),
    "entry is text": ({"a": "x"}, b"", "exactly"),
    "path up": ({"../../a": entry(0, 4)}, b"x" * 4, "path trick"),
    "absolute path": ({"/etc/a": entry(0, 4)}, b"x" * 4, "path trick"),
    "backslash": ({"a\\b": entry(0, 4)}, b"x" * 4, "path trick"),
    "nul in name": ({"a\0b": entry(0, 4)}, b"x" * 4, "unprintable"),
    "escape code in name": ({"a\x1b[31m": entry(0, 4)}, b"x" * 4, "unprintable"),
    "empty name": ({"": entry(0, 4)}, b"x" * 4, "empty"),
    "long name": ({"a" * 600: entry(0, 4)}, b"x" * 4, "too long"),
    "a list": (b"[]", b"", "not a JSON object"),
    "not JSON": (b"{nope}", b"", "invalid JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", "UTF-8"),
    "deep": (b'{"a":' * 2000 + b"1" + b"}" * 2000, b"", "deeper"),
    "duplicate": (
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
        b"",
        "twice",
    ),
    "NaN": (b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,0]}}', b"", "NaN"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(tmp_path, case):
    header, data, message = BAD[case]
    path = write(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(UntrustedInputError, match=message) as caught:
        read_safetensors_header(path)
    assert caught.value.file == str(path)
    assert str(caught.value).isprintable()


def test_control_the_same_writer_makes_files_that_are_read(tmp_path):
    path = write(tmp_path / "fine.safetensors", {"b": entry(4, 6), "a/b": entry(0, 4), "__metadata__": {"x": "y"}}, b"x" * 6)
    assert list(read_safetensors_header(path)) == ["a/b", "b"]


@pytest.mark.parametrize("length", [10**15, 2**64 - 1, 100_000_001, 5000, 0, 1])
def test_header_length_out_of_range(tmp_path, length):
    started = time.monotonic()
    path = write(tmp_path / "bad.safetensors", {"a": entry(0, 4)}, b"x" * 4, length)
    with pytest.raises(UntrustedInputError, match="a header of"):
        read_safetensors_header(path)
    assert time.monotonic() - started < 1


def test_tiny_files(tmp_path):
    for size in range(8):
        path = tmp_path / f"{size}.safetensors"
        path.write_bytes(b"\0" * size)
        with pytest.raises(UntrustedInputError, match="too few"):
            read_safetensors_header(path)


def test_metadata_must_be_text(tmp_path):
    path = write(tmp_path / "bad.safetensors", {"__metadata__": {"x": 1}})
    with pytest.raises(UntrustedInputError, match="text to text"):
        read_safetensors_metadata(path)


def test_every_cut_of_a_file_is_refused(good):
    raw = good.read_bytes()
    for size in {0, 7, 8, 50, *range(len(raw) - 30, len(raw))}:
        good.write_bytes(raw[:size])
        with pytest.raises(UntrustedInputError):
            read_safetensors_header(good)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damaged_headers_raise_typed_errors_and_never_pass_where_the_library_refuses(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    raw = bytearray(path.read_bytes())
    header_end = 8 + int.from_bytes(raw[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, header_end - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        read_safetensors_header(path)
    except UntrustedInputError:
        return
    try:
        with safe_open(path, "numpy") as reference:
            reference.keys()
    except SafetensorError as error:
        raise AssertionError(f"read here, refused by the library: {error}") from None


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_under_another_name_is_called_one(tmp_path, archive):
    import torch

    torch.save({"a": torch.zeros(3)}, tmp_path / "model.safetensors", _use_new_zipfile_serialization=archive)
    with pytest.raises(UntrustedInputError, match="pickle"):
        read_safetensors_header(tmp_path / "model.safetensors")
