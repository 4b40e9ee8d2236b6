"""Folders damaged at random: opening refuses with a typed error that names a file, or the checkpoint is sound; never anything else."""

import json
import random

import pytest
from support import layouts

from ms4_train.errors import MS4Error
from ms4_train.weights.reading.checkpoint import open_checkpoint
from ms4_train.weights.reading.summary import inspect_checkpoint

MAKERS = {
    "hf": layouts.hf_folder,
    "native": layouts.native_folder,
    "hf-fp8": layouts.hf_fp8_folder,
    "native-fp8": layouts.native_fp8_folder,
    "nvfp4": layouts.nvfp4_folder,
}
ODD_VALUES = [None, True, 0, -1, 1e300, 2**40, "x", "../x.safetensors", [], {}, {"a": 1}, [1, "a"]]
ROUNDS = 60


def flip(rng, data, end):
    for _ in range(rng.choice([1, 3, 20])):
        data[rng.randrange(end)] = rng.randrange(256)


def cut(rng, data, end):
    start = rng.randrange(end)
    del data[start : start + rng.randrange(1, 60)]


def repeat(rng, data, end):
    start, source = rng.randrange(end), rng.randrange(end)
    data[start:start] = data[source : source + rng.randrange(1, 80)]


def containers(value):
    """Every (container, key or index) inside a JSON value."""
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    for key, child in items:
        yield value, key
        yield from containers(child)


def error_of(folder):
    try:
        open_checkpoint(folder)
    except MS4Error as error:
        return error
    return None


@pytest.mark.parametrize("layout", MAKERS)
def test_damage_is_a_typed_error(tmp_path, layout):
    rng = random.Random(layout)
    MAKERS[layout](tmp_path, shards=2)
    names = [name for name in ("config.json", "params.json") if (tmp_path / name).exists()]
    files = [tmp_path / names[0], *tmp_path.glob("*.index.json"), *tmp_path.glob("*.safetensors")]
    refused = 0
    for _ in range(ROUNDS):
        file = rng.choice(files)
        before = file.read_bytes()
        data = bytearray(before)
        is_json = file.suffix == ".json"
        if is_json and rng.random() < 0.4:
            content = json.loads(before)
            holder, key = rng.choice(list(containers(content)))
            holder[key] = rng.choice(ODD_VALUES)
            data = bytearray(json.dumps(content).encode())
        else:
            rng.choice([flip, cut, repeat])(rng, data, len(data) if is_json else int.from_bytes(data[:8], "little") + 8)
        file.write_bytes(data)
        error = error_of(tmp_path)
        if error is not None:
            refused += 1
            assert str(tmp_path) in (error.file or ""), error
            assert inspect_checkpoint(tmp_path).problems
        file.write_bytes(before)
    assert refused > ROUNDS / 2  # control: the damage is real
    assert inspect_checkpoint(tmp_path).problems == []
