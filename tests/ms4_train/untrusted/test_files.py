"""Outside files: what cannot be read is refused with a reason, and never hangs."""

from __future__ import annotations

import os
import time

import pytest

from ms4_train.errors import UntrustedInputError
from ms4_train.untrusted.files import decode_utf8, read_bytes, read_text


def test_reads_exactly_up_to_the_bound(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 100)
    assert read_bytes(path, max_bytes=100) == b"x" * 100
    with pytest.raises(UntrustedInputError, match="larger than the 99 bytes"):
        read_bytes(path, max_bytes=99)


def test_missing_file_says_where_paths_start(tmp_path):
    with pytest.raises(UntrustedInputError, match=r"no such file.*current folder"):
        read_bytes(tmp_path / "absent", max_bytes=1)
    with pytest.raises(UntrustedInputError, match=r"folder .*nowhere does not exist either"):
        read_bytes(tmp_path / "nowhere" / "absent", max_bytes=1)


def test_folder_pipe_and_device_are_refused_at_once(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    started = time.monotonic()
    for path in (tmp_path, pipe, "/dev/zero"):
        with pytest.raises(UntrustedInputError, match="a file is needed"):
            read_bytes(path, max_bytes=10)
    assert time.monotonic() - started < 1  # opening a pipe without a writer blocks for ever if done naively


def test_nul_in_path_and_overlong_name_are_typed_errors():
    for path in ("a\0b", "x" * 5000):
        with pytest.raises(UntrustedInputError):
            read_bytes(path, max_bytes=10)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"ok\nbad \xff", "not UTF-8.*0xff"),
        ("text".encode("utf-16"), "UTF-16"),
        (b"ok\n\xed\xa0\x80", "not UTF-8"),  # a surrogate in UTF-8 clothes
    ],
)
def test_other_encodings_are_named(data, message):
    with pytest.raises(UntrustedInputError, match=message):
        decode_utf8(data, file="rows.jsonl")


def test_bad_byte_has_its_line():
    with pytest.raises(UntrustedInputError) as caught:
        decode_utf8(b"one\ntwo\n\xff", file="f")
    assert caught.value.line == 3


def test_byte_order_mark_is_dropped(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_text(path, max_bytes=100) == "a: 1"
