"""Scales are read as safetensors reads them, and each one that is no positive number is named."""

import math

import pytest
import torch
from support.checkpoints import write_safetensors

from ms4_train.errors import WeightsError
from ms4_train.untrusted import read_safetensors_header
from ms4_train.weights.reading.scalars import read_scalars
from ms4_train.weights.reading.stored_files import OpenFiles, StoredTensor


def located(file):
    return [StoredTensor(file, name, info) for name, info in read_safetensors_header(file).items()]


def test_scalars_of_all_types_and_shapes(tmp_path):
    tensors = {
        f"{index}.{dtype}".replace("torch.", ""): (torch.rand(shape) + 0.1).to(dtype)
        for index, shape in enumerate([(), (1,), (8, 1, 1), (8,)])
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
    }
    far = {"far": torch.rand(100_000), "last": torch.tensor(2.5)}
    write_safetensors(tmp_path / "a", tensors | far)
    write_safetensors(tmp_path / "b", {"other": torch.tensor([0.25])})
    wanted = [item for item in located(tmp_path / "a") + located(tmp_path / "b") if item.stored_name != "far"]
    found = read_scalars(OpenFiles(), wanted)
    expected = {**tensors, "last": far["last"], "other": torch.tensor([0.25])}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert torch.equal(found[name], value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -0.0, -0.5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_bad_values_are_named(tmp_path, value, dtype):
    stack = torch.ones(4, 1, 1, dtype=dtype)
    stack[2] = value
    write_safetensors(tmp_path / "a", {"good": torch.tensor(1.0, dtype=dtype), "bad": stack, "also": torch.tensor(value, dtype=dtype)})
    with pytest.raises(WeightsError, match="and 1 more") as caught:
        read_scalars(OpenFiles(), located(tmp_path / "a"))
    assert (caught.value.key, caught.value.file) == ("bad", str(tmp_path / "a"))
    collected = []
    found = read_scalars(OpenFiles(), located(tmp_path / "a"), collected.append)
    assert [error.key for error in collected] == ["bad", "also"]
    assert found["good"] == 1


def test_file_that_ends_early(tmp_path):
    write_safetensors(tmp_path / "a", {"x": torch.ones(3)})
    items = located(tmp_path / "a")
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-4])
    with pytest.raises(WeightsError, match="ends early") as caught:
        read_scalars(OpenFiles(), items)
    assert caught.value.key == "x"
