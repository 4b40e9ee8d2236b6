"""Whole or absent: real full disks (a tiny tmpfs, a file-size limit), a kill in the middle of writing, and permissions."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ms4_train.errors import StorageError
from ms4_train.storage import (
    atomic_write_bytes,
    atomic_write_text,
    free_bytes,
    is_disk_full,
    require_free_bytes,
    storage_errors,
)


def run(code: str, *arguments: object, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "a.json"
    atomic_write_bytes(path, b"one")
    atomic_write_text(path, "zwei \u20ac\r\n")
    assert path.read_bytes() == "zwei \u20ac\r\n".encode()
    assert os.listdir(tmp_path) == ["a.json"]  # noqa: PTH208


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path, umask):
    previous = os.umask(umask)
    try:
        atomic_write_bytes(tmp_path / "a", b"x")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


def test_links_are_followed_and_devices_left_alone(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    atomic_write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(StorageError, match="not a regular file"):
            atomic_write_bytes(path, b"x")
    assert (tmp_path / "pipe").is_fifo()


def test_missing_folder_is_one_typed_error(tmp_path):
    with pytest.raises(StorageError, match=r"cannot be written \(No such file or directory\)"):
        atomic_write_bytes(tmp_path / "absent" / "a", b"x")


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "out").write_text("")
    for folder in (tmp_path / "out", tmp_path / "out" / "inner"):
        with pytest.raises(StorageError, match=r"out.*: a file stands where a folder is needed\. Fix: move"), storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    # The size limit of the process plays the full disk: the kernel refuses in the middle of write(2).
    result = run(
        """
        import resource, signal, sys
        from ms4_train.errors import StorageError
        from ms4_train.storage import atomic_write_bytes
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            atomic_write_bytes(sys.argv[1], b"x" * 5000)
        except StorageError as error:
            print(error)
        """,
        path,
    )
    assert "the disk is full: 5,000 bytes are needed," in result.stdout, result
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


FULL_DISK = """
import os, sys
from pathlib import Path
from ms4_train.errors import StorageError
from ms4_train.storage import atomic_write_bytes, require_free_bytes
folder = Path(sys.argv[1])
if sys.argv[2] == "naive":
    try:
        (folder / "a").write_bytes(b"x" * 3_000_000)
    except OSError:
        print(sorted(os.listdir(folder)), (folder / "a").stat().st_size < 3_000_000)
    sys.exit()
atomic_write_bytes(folder / "a", b"old")
for call in (lambda: atomic_write_bytes(folder / "a", b"x" * 3_000_000), lambda: require_free_bytes(folder / "new" / "b", 3_000_000)):
    try:
        call()
    except StorageError as error:
        print(str(error).replace(str(folder), "FOLDER"))
print((folder / "a").read_bytes(), os.listdir(folder))
"""


def on_a_tiny_disk(folder: Path, how: str) -> list[str]:
    script = f'mount -t tmpfs -o size=1m none "{folder}" && exec "$0" "$@"'
    prefix = ("unshare", "-Urm", "sh", "-c", script)
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not allow a private tmpfs (unshare -Urm)")
    return run(FULL_DISK, folder, how, prefix=prefix).stdout.splitlines()


def test_a_really_full_disk(tmp_path):
    write, check, after = on_a_tiny_disk(tmp_path, "ours")
    for line in (write, check):
        assert "the disk is full: 3,000,000 bytes are needed, 1,04" in line  # 1 MiB less the old file's page
        assert line.endswith("Fix: free space or choose another folder.")
    assert after == "b'old' ['a']"


def test_control_a_plain_write_leaves_half_a_file(tmp_path):
    assert on_a_tiny_disk(tmp_path, "naive") == ["['a'] True"]


def test_kill_while_writing_leaves_a_whole_file(tmp_path):
    path = tmp_path / "a"
    for generation in range(4):
        writer = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys\nfrom ms4_train.storage import atomic_write_bytes\nprint(flush=True)\n"
                "while True:\n    for digit in b'0123456789':\n        atomic_write_bytes(sys.argv[1], bytes([digit]) * 2_000_000)",
                str(path),
            ],
            stdout=subprocess.PIPE,
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        try:
            writer.wait(0.05 + 0.03 * generation)
        except subprocess.TimeoutExpired:
            writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
        writer.stdout.close()
        data = path.read_bytes() if path.exists() else b""
        assert len(data) in (0, 2_000_000)
        assert len(set(data)) <= 1


def test_require_free_bytes(tmp_path):
    free = free_bytes(tmp_path)
    assert free is not None
    require_free_bytes(tmp_path / "not" / "there" / "yet", 1000)
    with pytest.raises(StorageError, match=r"1,152,921,504,606,846,976 bytes are needed, [\d,]+ bytes are free"):
        require_free_bytes(tmp_path, 1 << 60)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError(122, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),  # safetensors
        ValueError("database or disk is full"),  # SQLite
    ],
)
def test_full_disks_are_recognised_in_other_libraries_words(error):
    assert is_disk_full(error)
    with pytest.raises(StorageError, match="the disk is full: 7 bytes are needed"), storage_errors("x", 7):
        raise error
    with pytest.raises(KeyError) as outer:
        raise KeyError("outer") from error
    assert is_disk_full(outer.value)


def test_other_errors_pass_through():
    assert not is_disk_full(ValueError("disk"))
    with pytest.raises(ValueError, match="a defect"), storage_errors("x"):
        raise ValueError("a defect")
    with pytest.raises(StorageError, match=r"x: cannot be written \(Permission denied\)"), storage_errors("x"):
        raise PermissionError(13, "Permission denied")
