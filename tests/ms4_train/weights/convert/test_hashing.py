"""Files hashed while they are written, in any order, have hashlib's sums; a failure is raised, not waited for."""

import hashlib
import itertools
import os
import random
import threading

import pytest

from ms4_train.weights.convert.hashing import FollowingHashes


def expected(files):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("hashers", [1, 3])
def test_ranges_in_any_order_from_several_threads(tmp_path, hashers):
    generator = random.Random(0)
    sizes = [5_000_001, 3 << 20, 10]
    paths = [tmp_path / f"file {number}" for number in range(3)]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes(bytes(size))
    hashes = FollowingHashes(list(zip(paths, sizes, strict=True)), hashers)
    ranges = []
    for file, size in enumerate(sizes):
        cuts = sorted({0, size, *(generator.randrange(size) for _ in range(40))})
        ranges += [(file, start, stop) for start, stop in itertools.pairwise(cuts)]
    generator.shuffle(ranges)
    lock = threading.Lock()

    def write():
        while True:
            with lock:
                if not ranges:
                    return
                file, start, stop = ranges.pop()
            with paths[file].open("r+b") as handle:
                handle.seek(start)
                handle.write(os.urandom(stop - start))
            hashes.wrote(file, start, stop)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hashes.results() == expected(paths)


def test_what_is_not_written_is_not_hashed(tmp_path):
    """Negative control: were bytes hashed before they were reported, the sum would be that of zeros."""
    path = tmp_path / "file"
    path.write_bytes(bytes(4 << 20))
    hashes = FollowingHashes([(path, 4 << 20)], 1)
    hashes.wrote(0, 2 << 20, 4 << 20)
    with path.open("r+b") as handle:
        handle.write(os.urandom(2 << 20))
    hashes.wrote(0, 0, 2 << 20)
    assert hashes.results() == expected([path])


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "short").write_bytes(b"123")
    for path in (tmp_path / "missing", tmp_path / "short"):
        hashes = FollowingHashes([(path, 1000)], 1)
        hashes.wrote(0, 0, 1000)
        with pytest.raises(OSError, match=r"missing|short"):
            hashes.results()


def test_stopping_ends_the_threads(tmp_path):
    before = threading.active_count()
    hashes = FollowingHashes([(tmp_path / "never", 10)], 2)
    assert threading.active_count() == before + 2
    hashes.stop()
    hashes.stop()
    assert threading.active_count() == before
