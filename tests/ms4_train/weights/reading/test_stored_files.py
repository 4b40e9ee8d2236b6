"""Reading by position equals safetensors' reading; faults of index and files are in ``test_checkpoint_faults.py``."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import layouts
from support.checkpoints import write_safetensors

from ms4_train.errors import MS4Error, WeightsError
from ms4_train.weights.reading.stored_files import OpenFiles, coalesced, locate

DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F8_E4M3": torch.float8_e4m3fn, "U8": torch.uint8}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(("make", "family"), [(layouts.hf_fp8_folder, "hf"), (layouts.nvfp4_folder, "native")])
def test_bytes_equal_the_librarys(tmp_path, make, family, shards):
    stored = make(tmp_path, shards=shards)
    located = locate(tmp_path, family)
    assert located.keys() == stored.keys()
    library = {name: (file, tensor) for file in tmp_path.glob("*.safetensors") for name, tensor in load_file(file).items()}
    files = OpenFiles()
    for name, item in located.items():
        file, tensor = library[name]
        out = torch.empty(item.info.shape, dtype=DTYPES[item.info.dtype])
        files.read_into(item.file, item.info.start, out)
        expected = tensor.view(-1).view(torch.uint8)
        assert item.file == file
        assert torch.equal(out.view(-1).view(torch.uint8), expected), name
        assert item.num_bytes == tensor.nbytes
        count = min(item.num_bytes, 7)
        assert files.read_bytes(item.file, item.info.start, count) == expected.numpy().tobytes()[:count]


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_problems_can_be_collected_and_the_rest_is_still_located(tmp_path):
    stored = layouts.native_folder(tmp_path, shards=3)
    first, second, _ = sorted(tmp_path.glob("*.safetensors"))
    lost = set(load_file(first)) | set(load_file(second))
    first.write_bytes(b"nothing")
    second.unlink()
    problems = []
    found = locate(tmp_path, "native", problems.append)
    assert found.keys() == stored.keys() - lost
    assert [first.name in str(problems[0]), second.name in str(problems[1])] == [True, True]
    with pytest.raises(MS4Error):
        locate(tmp_path, "native")


def test_descriptors_are_opened_once_and_closed(tmp_path):
    write_safetensors(tmp_path / "a", {"x": torch.arange(100, dtype=torch.float32)})
    before = open_descriptors()
    files = OpenFiles()
    for _ in range(5):
        files.read_bytes(tmp_path / "a", 0, 8)
    assert open_descriptors() == before + 1
    files.close()
    assert open_descriptors() == before
    files.read_bytes(tmp_path / "a", 0, 8)  # opens it again
    del files
    assert open_descriptors() == before


def test_a_file_that_ends_early_or_is_gone_is_a_typed_error(tmp_path):
    write_safetensors(tmp_path / "a", {"x": torch.arange(100, dtype=torch.float32)})
    with pytest.raises(WeightsError, match="ends early") as caught:
        OpenFiles().read_into(tmp_path / "a", 100, torch.empty(1000), key="x")
    assert (caught.value.file, caught.value.key) == (str(tmp_path / "a"), "x")
    with pytest.raises(WeightsError, match="No such file"):
        OpenFiles().read_bytes(tmp_path / "gone", 0, 1)


def test_neighbours_are_read_together(tmp_path):
    write_safetensors(tmp_path / "a", {"1": torch.ones(2), "2": torch.ones(3), "far": torch.ones(10_000), "3": torch.ones(4)})
    (tmp_path / "consolidated.safetensors").symlink_to(tmp_path / "a")
    located = locate(tmp_path, "native")
    groups = list(coalesced([located[name] for name in ("3", "1", "2")]))
    assert [[item.stored_name for item in group[3]] for group in groups] == [["1", "2"], ["3"]]
    assert [stop - start for _, start, stop, _ in groups] == [20, 16]
