"""SHA256SUMS against the real sha256sum and hashlib, and every way in which such a file can lie."""

import hashlib
import os
import shutil
import subprocess

import pytest

from ms4_train.errors import StorageError, UntrustedInputError, WeightsError
from ms4_train.weights import checksums
from ms4_train.weights.checksums import (
    SUMS_FILE,
    bytes_to_check,
    check_sums,
    file_sha256,
    folder_sums,
    is_plain_name,
    read_sums,
    write_sums,
)

SHA256SUM = shutil.which("sha256sum")
CONTENT = {"a.safetensors": b"", "b c.json": b"{}", "é.txt": b"x" * 100_000, "-n": b"dash", "*star": b"star"}


@pytest.fixture
def folder(tmp_path):
    for name, data in CONTENT.items():
        (tmp_path / name).write_bytes(data)
    write_sums(tmp_path, {name: hashlib.sha256(data).hexdigest() for name, data in CONTENT.items()})
    return tmp_path


def sha256sum(folder, *arguments):
    return subprocess.run([str(SHA256SUM), *arguments], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.skipif(SHA256SUM is None, reason="no sha256sum on this machine")
def test_the_real_program_reads_our_file_and_we_read_its(folder):
    result = sha256sum(folder, "--strict", "-c", SUMS_FILE)
    assert (result.returncode, result.stdout.count(": OK")) == (0, len(CONTENT))
    for options in ([], ["--binary"]):
        theirs = sha256sum(folder, *options, "--", *CONTENT).stdout
        assert len(theirs.splitlines()) == len(CONTENT)
        (folder / SUMS_FILE).write_text(theirs)
        assert set(check_sums(folder)) == set(CONTENT)
    (folder / SUMS_FILE).write_text("".join(f"{line[:64].upper()}{line[64:]}\n" for line in theirs.splitlines()))
    assert (sha256sum(folder, "-c", SUMS_FILE).returncode, set(check_sums(folder))) == (0, set(CONTENT))
    (folder / "b c.json").write_bytes(b"[]")
    assert sha256sum(folder, "-c", SUMS_FILE).returncode == 1
    with pytest.raises(WeightsError):
        check_sums(folder)


def test_a_large_file_in_several_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "READ_BYTES", 1000)
    data = os.urandom(12_345)
    (tmp_path / "f").write_bytes(data)
    seen = []
    assert file_sha256(tmp_path / "f", seen.append) == hashlib.sha256(data).hexdigest()
    assert seen == [1000] * 12 + [345]


def test_sums_are_sorted_and_read_back(folder):
    lines = (folder / SUMS_FILE).read_text().splitlines()
    assert [line[66:] for line in lines] == sorted(CONTENT)
    assert read_sums(folder) == {name: hashlib.sha256(data).hexdigest() for name, data in CONTENT.items()}
    assert read_sums(folder / "nowhere") is None


@pytest.mark.parametrize("threads", [1, 3, None])
def test_checking_counts_every_byte_and_returns_what_it_checked(folder, threads):
    counted = []
    assert check_sums(folder, progress=counted.append, threads=threads) == read_sums(folder)
    assert sum(counted) == bytes_to_check(folder, CONTENT) == sum(map(len, CONTENT.values()))
    assert set(check_sums(folder, ["-n", "*star"])) == {"-n", "*star"}
    assert folder_sums(folder, ["-n"]) == {"-n": hashlib.sha256(b"dash").hexdigest()}


def test_files_that_the_sums_do_not_name_are_the_callers_business(folder):
    (folder / "extra").write_text("x")
    check_sums(folder)
    with pytest.raises(WeightsError, match="no sum for extra"):
        check_sums(folder, ["-n", "extra"])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(b"{]"), "SHA-256 differs"),  # one bit, the same size
        (lambda path: path.write_bytes(b"{"), "SHA-256 differs"),
        (lambda path: path.write_bytes(b"{} "), "SHA-256 differs"),
        (lambda path: path.unlink(), "missing"),
        (lambda path: (path.unlink(), path.mkdir()), "missing"),
    ],
)
def test_a_file_that_differs_or_is_missing_is_named(folder, damage, words):
    damage(folder / "b c.json")
    with pytest.raises(WeightsError, match=words) as caught:
        check_sums(folder)
    assert caught.value.file == str(folder / "b c.json")
    check_sums(folder, [name for name in CONTENT if name != "b c.json"])  # control: only that file


def test_all_bad_files_are_counted_and_the_first_by_name_is_named(folder):
    for name in CONTENT:
        (folder / name).write_bytes(b"other")
    (folder / "b c.json").unlink()
    with pytest.raises(WeightsError, match=r"\(and 4 more\)") as caught:
        check_sums(folder)
    assert caught.value.file == str(folder / min(CONTENT))


GOOD = "0" * 64


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        f"{GOOD}  a\n\n",
        f"{GOOD} a\n",
        f"{GOOD[1:]}  a\n",
        f"{'g' * 64}  a\n",
        f"{GOOD}  \n",
        f"{GOOD}  ../a\n",
        f"{GOOD}  /etc/passwd\n",
        f"{GOOD}  sub/a\n",
        f"{GOOD}  ..\n",
        f"{GOOD}  a\\b\n",
        f"\\{GOOD}  a\\nb\n",
        f"{GOOD}  a\r\n",
        f"{GOOD}  a\x1b[2J\n",
        f"{GOOD}  {'a' * 256}\n",
        f"{GOOD}  {SUMS_FILE}\n",
        f"{GOOD}  a\n{GOOD}  a\n",
        f"{GOOD}  a\n{'1' * 64} *a\n",
        f"SHA256 (a) = {GOOD}\n",
    ],
)
def test_malformed_sums_are_refused_with_the_line(tmp_path, text):
    (tmp_path / SUMS_FILE).write_bytes(text.encode())
    with pytest.raises(WeightsError, match="the line") as caught:
        read_sums(tmp_path)
    assert caught.value.line == (2 if text.startswith(f"{GOOD}  a\n") else 1)
    assert str(caught.value).isprintable()


def test_sums_that_are_no_text_too_large_or_no_file(tmp_path, monkeypatch):
    (tmp_path / SUMS_FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(UntrustedInputError):
        read_sums(tmp_path)
    monkeypatch.setattr(checksums, "MAX_SUMS_BYTES", 60)
    (tmp_path / SUMS_FILE).write_text(f"{GOOD}  a\n")
    with pytest.raises(UntrustedInputError, match="larger"):
        read_sums(tmp_path)
    (tmp_path / SUMS_FILE).unlink()
    (tmp_path / SUMS_FILE).symlink_to("nowhere")  # a dangling link is not "no sums"
    with pytest.raises(UntrustedInputError):
        read_sums(tmp_path)


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UntrustedInputError, match="not a regular file"):
        file_sha256(tmp_path / "pipe")


@pytest.mark.parametrize("sums", [{"../a": GOOD}, {"a\nb": GOOD}, {SUMS_FILE: GOOD}, {"a": "G" * 64}, {"a": GOOD[1:]}])
def test_what_could_not_be_read_back_is_not_written(tmp_path, sums):
    with pytest.raises(WeightsError):
        write_sums(tmp_path, sums)
    assert list(tmp_path.iterdir()) == []


def test_writing_replaces_whole_or_not_at_all(folder, monkeypatch):
    before = (folder / SUMS_FILE).read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ms4_train.storage._write_all", fail)
    with pytest.raises(StorageError, match="full"):
        write_sums(folder, {"a": GOOD})
    assert (folder / SUMS_FILE).read_bytes() == before
    assert {path.name for path in folder.iterdir()} == set(CONTENT) | {SUMS_FILE}


def test_no_sums_to_check(tmp_path):
    with pytest.raises(WeightsError, match=f"no {SUMS_FILE}"):
        check_sums(tmp_path)


@pytest.mark.parametrize(
    ("name", "plain"), [("a", True), ("a b", True), ("é", True), ("..a", True), ("", False), (".", False), ("a/b", False)]
)
def test_plain_names(name, plain):
    assert is_plain_name(name) is plain
