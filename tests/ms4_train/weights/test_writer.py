"""Written folders are whole or absent: on bad tensors and on a really full disk nothing is left behind."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import saved_tiny
from support.models import tiny_config, tiny_model

from ms4_train.errors import StorageError, UntrustedInputError, WeightsError
from ms4_train.weights.writer import save_model

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def state():
    return tiny_model().state_dict()


def left_behind(folder):
    return sorted(path.name for path in folder.iterdir())


def test_shards_hold_every_tensor_once_and_keep_to_their_size(tmp_path, state):
    save_model(state, tmp_path / "m", config=tiny_config(), max_shard_bytes=100_000)
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    found = {}
    for file in sorted((tmp_path / "m").glob("model-*.safetensors")):
        tensors = load_file(file)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 100_000 or len(tensors) == 1
        assert all(index["weight_map"][name] == file.name for name in tensors)
        assert not set(found) & set(tensors)
        found |= tensors
    assert set(found) == set(state) == set(index["weight_map"])
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in state.values())


def test_a_shard_may_be_filled_to_the_byte(tmp_path, state):
    first_two = list(state)[:2]
    limit = sum(state[name].nbytes for name in first_two)
    save_model(state, tmp_path / "m", config=tiny_config(), max_shard_bytes=limit)
    assert set(load_file(min((tmp_path / "m").glob("model-*.safetensors")))) == set(first_two)


def test_tensors_may_come_one_at_a_time(tmp_path, state):
    alive = []

    def produce():
        for name, tensor in state.items():
            alive.append(name)
            yield name, tensor.clone()

    save_model(produce(), tmp_path / "m", config=tiny_config(), dtype=torch.bfloat16)
    assert alive == list(state)
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert all(torch.equal(stored[name], state[name].bfloat16()) for name in state)
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == "bfloat16"


def test_modes_follow_the_umask(tmp_path, state):
    before = os.umask(0o027)
    try:
        save_model(state, tmp_path / "m", config=tiny_config())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o750
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "m").iterdir()} == {0o640}


def test_tokenizer_is_copied(tmp_path, state):
    source = tmp_path / "tekken.json"
    source.write_bytes(b'{"a": 1}')
    save_model(state, tmp_path / "m", config=tiny_config(), tokenizer_file=source)
    assert (tmp_path / "m" / "tekken.json").read_bytes() == b'{"a": 1}'
    with pytest.raises(UntrustedInputError):
        save_model(state, tmp_path / "n", config=tiny_config(), tokenizer_file=tmp_path / "absent.json")
    assert left_behind(tmp_path) == ["m", "tekken.json"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda state: state.pop("model.norm.weight"), "missing"),
        (lambda state: state.update({"model.extra.weight": torch.zeros(1)}), "not a weight"),
        (lambda state: state.update({"model.norm.weight": torch.zeros(3)}), "shape"),
        (lambda state: state.clear(), "no tensors"),
    ],
)
def test_wrong_tensors_leave_nothing_behind(tmp_path, state, change, word):
    state = dict(state)
    change(state)
    with pytest.raises(WeightsError, match=word):
        save_model(state, tmp_path / "deep" / "m", config=tiny_config(), max_shard_bytes=50_000)
    assert left_behind(tmp_path) == []


def test_error_of_the_producer_leaves_the_older_checkpoint(tmp_path, state):
    saved_tiny(tmp_path / "m", seed=3)
    before = (tmp_path / "m" / "model.safetensors").read_bytes()

    def produce():
        yield from list(state.items())[:5]
        raise RuntimeError("a rank died")

    with pytest.raises(RuntimeError, match="a rank died"):
        save_model(produce(), tmp_path / "m", config=tiny_config())
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before
    assert left_behind(tmp_path) == ["m"]


def test_other_peoples_files_are_never_replaced(tmp_path, state):
    saved_tiny(tmp_path / "m")
    (tmp_path / "m" / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"notes\.txt"):
        save_model(state, tmp_path / "m", config=tiny_config())
    with pytest.raises(StorageError, match="holds"):
        save_model(state, tmp_path / "m", config=tiny_config(), replace=False)


FULL_DISK = """
import sys
from pathlib import Path
import ms4_train.weights.folder as folder
from ms4_train.errors import StorageError
from ms4_train.weights import save_model
from support.models import tiny_config, tiny_model
model = tiny_model()
for _ in range(2):
    try:
        save_model(model.state_dict(), Path(sys.argv[1]) / "m", config=model.config, max_shard_bytes=150_000)
    except StorageError as error:
        print(error)
        print(sorted(path.name for path in Path(sys.argv[1]).iterdir()))
    folder.require_free_bytes = lambda path, needed: None  # the second time as if another program filled the disk after the check
"""


def test_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path):
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine gives no mount namespace, so no small disk can be made")
    environment = os.environ | {"PROGRAM": FULL_DISK, "PYTHONPATH": f"{REPOSITORY / 'tests'}:{REPOSITORY}:{REPOSITORY / 'kernels'}"}
    command = f'mount -t tmpfs -o size=400k none {tmp_path} && exec {sys.executable} -c "$PROGRAM" {tmp_path}'
    done = subprocess.run(["unshare", "-Urm", "bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert all("disk is full" in line and "bytes are free" in line for line in lines[::2])
    assert lines[1::2] == ["[]", "[]"]
