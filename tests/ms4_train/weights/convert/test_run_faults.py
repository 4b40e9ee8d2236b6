"""What cannot be converted is refused by name before anything is written; a full disk keeps what is done for the next run."""

import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import layouts
from support.conversion import different, file_sums, stored_tensors

from ms4_train.errors import StorageError, UntrustedInputError, WeightsError
from ms4_train.weights.checksums import check_sums, folder_sums, write_sums
from ms4_train.weights.convert import convert, encode, run
from ms4_train.weights.convert.workplace import Workplace

REPOSITORY = Path(__file__).resolve().parents[4]


def go(source, out, to, **options):
    return convert(source, out, to=to, progress=None, **options)


def refused(source, to, kind=WeightsError, **options):
    """The error of a conversion that must leave nothing, not even a hidden folder, and the source as it was."""
    before, names = file_sums(source), sorted(path.name for path in source.parent.iterdir())
    with pytest.raises(kind) as caught:
        go(source, source.parent / "new" / "out", to, **options)
    assert sorted(path.name for path in source.parent.iterdir()) == names
    assert file_sums(source) == before
    return caught.value


def damage(file, change):
    data = bytearray(file.read_bytes())
    change(data)
    file.write_bytes(data)


def truncate(folder):
    damage(folder / "model.safetensors", lambda data: data.__delitem__(slice(-100, None)))


def rename_a_tensor(folder):
    damage(
        folder / "model.safetensors", lambda data: data.__setitem__(slice(None), data.replace(b"q_a_proj.weight", b"q_x_proj.weight", 1))
    )


def misshape(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: t[:-1].contiguous() if name.endswith("lm_head.weight") else t for name, t in tensors.items()}, folder / "model.safetensors"
    )


def duplicate(folder):
    shutil.copy(folder / "model.safetensors", folder / "model-00002-of-00002.safetensors")
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weight_map = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def travel(folder):
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, "../model.safetensors")}))


def pickle_it(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize("fault", [truncate, rename_a_tensor, misshape, duplicate, travel, pickle_it])
def test_a_damaged_source_is_refused_before_anything_is_written(tmp_path, fault):
    layouts.hf_folder(tmp_path / "hf")
    fault(tmp_path / "hf")
    error = refused(tmp_path / "hf", "native", (WeightsError, UntrustedInputError))
    assert error.file
    assert error.fix


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_bad_scale_is_refused_by_name(tmp_path, value):
    tensors = layouts.native_fp8_folder(tmp_path / "fp8")
    name = "layers.1.experts.5.w2.qscale_weight"
    save_file(tensors | {name: torch.tensor(value, dtype=torch.bfloat16)}, tmp_path / "fp8" / "consolidated.safetensors")
    error = refused(tmp_path / "fp8", "hf")
    assert error.key == name
    assert "consolidated.safetensors" in str(error)


def with_sums(folder):
    write_sums(folder, folder_sums(folder, [path.name for path in folder.iterdir()]))


def test_a_flipped_bit_is_found_by_the_sources_sums(tmp_path):
    layouts.hf_folder(tmp_path / "hf", shards=2)
    with_sums(tmp_path / "hf")
    assert go(tmp_path / "hf", tmp_path / "fine", "native").is_checked
    damage(tmp_path / "hf" / "model-00002-of-00002.safetensors", lambda data: data.__setitem__(-5, data[-5] ^ 4))
    error = refused(tmp_path / "hf", "native")
    assert error.file.endswith("model-00002-of-00002.safetensors")
    # Negative control: unchecked, the damage goes through.
    report = go(tmp_path / "hf", tmp_path / "unchecked", "native", check_sums=False)
    assert not report.is_checked
    assert different(stored_tensors(tmp_path / "unchecked"), stored_tensors(tmp_path / "fine")) != []


def test_a_damaged_companion_is_found_too(tmp_path):
    layouts.hf_folder(tmp_path / "hf", tokenizer=True)
    with_sums(tmp_path / "hf")
    damage(tmp_path / "hf" / "tekken.json", lambda data: data.__setitem__(40, 65))
    assert refused(tmp_path / "hf", "native").file.endswith("tekken.json")


def test_nan_codes_stop_the_conversion_and_leave_nothing(tmp_path):
    tensors = layouts.native_fp8_folder(tmp_path / "fp8")
    name = "layers.1.experts.7.w2.weight"
    codes = tensors[name].view(torch.uint8).clone()
    codes[3, 5] = 0x7F
    save_file(tensors | {name: codes.view(torch.float8_e4m3fn)}, tmp_path / "fp8" / "consolidated.safetensors")
    assert refused(tmp_path / "fp8", "hf").key == name


def test_values_that_are_not_finite_cannot_become_fp8(tmp_path):
    pieces = layouts.reference_pieces()
    pieces["model.layers.0.mlp.experts.2.up_proj.weight"][1, 1] = float("inf")
    layouts.native_folder(tmp_path / "native", pieces=pieces)
    layouts.native_fp8_folder(tmp_path / "fp8")
    for to in ("native-fp8", "hf-fp8"):
        for weight_scales in ("kept", "fitted"):
            error = refused(tmp_path / "native", to, scales=tmp_path / "fp8", weight_scales=weight_scales)
            assert error.key == "layers.0.experts.2.w3.weight"
            assert "finite" in error.message


def test_what_cannot_be_written_is_said_with_what_to_do(tmp_path):
    layouts.hf_folder(tmp_path / "hf")
    layouts.native_fp8_folder(tmp_path / "fp8")
    assert "calibration" in refused(tmp_path / "hf", "nvfp4").message
    assert "65504" in refused(tmp_path / "hf", "native", dtype="float16").message
    assert "65504" in refused(tmp_path / "hf", "native", dtype=torch.float16).message
    assert "bfloat16 or float32" in str(refused(tmp_path / "hf", "native", dtype="int8"))
    assert "--scales" in str(refused(tmp_path / "hf", "native-fp8"))
    assert refused(tmp_path / "hf", "native", scales=tmp_path / "fp8").key == "scales"
    assert refused(tmp_path / "fp8", "hf-fp8", scales=tmp_path / "fp8").key == "scales"
    assert refused(tmp_path / "hf", "native-fp8", scales=tmp_path / "hf").file.endswith("hf")
    assert refused(tmp_path / "hf", "native", threads=0).key == "threads"
    assert "Hugging Face" in refused(tmp_path / "hf", "native", family="native").message
    assert "native-fp8" in refused(tmp_path / "hf", "gguf").fix


def test_float16_sources_are_written_in_another_type_only(tmp_path):
    hf = layouts.hf_folder(tmp_path / "hf", dtype=torch.float16)
    assert refused(tmp_path / "hf", "native").key == "dtype"
    go(tmp_path / "hf", tmp_path / "out", "hf", dtype="float32")
    assert different(stored_tensors(tmp_path / "out"), {name: tensor.float() for name, tensor in hf.items()}) == []


def test_values_that_outgrew_kept_scales_are_counted(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(encode, "CHUNK_VALUES", 64)  # a row at a time, of which three have such values
    layouts.native_fp8_folder(tmp_path / "fp8")
    go(tmp_path / "fp8", tmp_path / "plain", "native")
    tensors = stored_tensors(tmp_path / "plain")
    first, second = "layers.0.experts.1.w1.weight", "layers.1.attention.wo.weight"
    tensors[first][:3, :5] = tensors[first].abs().max() * 2
    tensors[second][0, 0] = -tensors[second].abs().max() * 3
    save_file(tensors, tmp_path / "plain" / "consolidated.safetensors")
    (tmp_path / "plain" / "SHA256SUMS").unlink()
    for to in ("native-fp8", "hf-fp8"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            report = go(tmp_path / "plain", tmp_path / to, to)
        ours = {"model.layers.0.mlp.experts.1.gate_proj.weight": 15, "model.layers.1.self_attn.o_proj.weight": 1}
        assert report.saturated == ours
        assert report.worst == ("model.layers.0.mlp.experts.1.gate_proj.weight", 15)
        assert "16 values in 2 matrices" in caplog.text
    report = go(tmp_path / "plain", tmp_path / "fitted", "native-fp8", weight_scales="fitted")
    assert report.saturated == {}


def test_targets_that_hold_something_or_lie_in_the_source_are_refused(tmp_path):
    layouts.hf_folder(tmp_path / "hf")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for out in (tmp_path / "full", tmp_path / "hf", tmp_path / "hf" / "native"):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(StorageError):
            go(tmp_path / "hf", out, "native")
        assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    go(tmp_path / "hf", tmp_path / "empty", "native")
    assert check_sums(tmp_path / "empty")


def _hold(source, out, ready, release):
    with Workplace(Path(out), Path(source)):
        ready.set()
        release.wait(60)


def test_a_second_converter_to_the_same_folder_is_refused(tmp_path):
    layouts.hf_folder(tmp_path / "hf")
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path / "hf"), str(tmp_path / "out"), ready, release))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(StorageError, match="another conversion"):
            go(tmp_path / "hf", tmp_path / "out", "native")
    finally:
        release.set()
        other.join()
    go(tmp_path / "hf", tmp_path / "out", "native")  # the lock went with its holder


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path, monkeypatch):
    layouts.hf_folder(tmp_path / "hf")
    original = run.work_off

    def meddling(*arguments):
        original(*arguments)
        os.utime(tmp_path / "hf" / "model.safetensors")

    monkeypatch.setattr(run, "work_off", meddling)
    with pytest.raises(WeightsError, match="changed while"):
        go(tmp_path / "hf", tmp_path / "out", "native")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_disk_that_is_too_small_is_found_first(tmp_path, monkeypatch):
    layouts.hf_folder(tmp_path / "hf")
    monkeypatch.setattr("ms4_train.storage.free_bytes", lambda path: 100_000)
    error = refused(tmp_path / "hf", "native", StorageError)
    assert "bytes are needed, 100,000 bytes are free" in error.message


def stopped_before_the_rename(monkeypatch, source, out, to, **options):
    def fail(place):
        raise StorageError("the disk fails.", file=place.out)

    with monkeypatch.context() as patch:
        patch.setattr(Workplace, "commit", fail)
        with pytest.raises(StorageError, match="disk fails"):
            go(source, out, to, **options)


def test_what_lies_on_the_disk_already_needs_no_room_again(tmp_path, monkeypatch):
    layouts.hf_folder(tmp_path / "hf")
    stopped_before_the_rename(monkeypatch, tmp_path / "hf", tmp_path / "out", "native")
    monkeypatch.setattr("ms4_train.storage.free_bytes", lambda path: 200_000)
    assert go(tmp_path / "hf", tmp_path / "out", "native").is_resumed
    with pytest.raises(StorageError, match="bytes are needed"):  # without remains it is too little
        go(tmp_path / "hf", tmp_path / "other", "native")


def test_other_scales_start_anew(tmp_path, monkeypatch):
    """Codes made for one scale under another one would be a wrong model that looks whole."""
    layouts.hf_folder(tmp_path / "hf")
    layouts.native_fp8_folder(tmp_path / "a")
    layouts.native_fp8_folder(tmp_path / "b", pieces={name: value * 2 for name, value in layouts.reference_pieces().items()})
    stopped_before_the_rename(monkeypatch, tmp_path / "hf", tmp_path / "out", "native-fp8", scales=tmp_path / "a")
    report = go(tmp_path / "hf", tmp_path / "out", "native-fp8", scales=tmp_path / "b")
    assert not report.is_resumed
    go(tmp_path / "hf", tmp_path / "straight", "native-fp8", scales=tmp_path / "b")
    assert file_sums(tmp_path / "out") == file_sums(tmp_path / "straight")
    stopped_before_the_rename(monkeypatch, tmp_path / "hf", tmp_path / "again", "native-fp8", scales=tmp_path / "a")
    assert go(tmp_path / "hf", tmp_path / "again", "native-fp8", scales=tmp_path / "a").is_resumed  # the same go on


FULL_DISK = """
import sys
from pathlib import Path
from ms4_train.weights.convert import convert, journal, run
from ms4_train.errors import StorageError
journal.BATCH_ITEMS = 4
run.require_free_bytes = lambda path, needed: None  # as if another program filled the disk after the check
source, disk = Path(sys.argv[1]), Path(sys.argv[2])
ballast = disk / "ballast"
ballast.write_bytes(bytes(300_000))
try:
    convert(source, disk / "out", to="native", progress=None, max_shard_bytes=100_000)
except StorageError as error:
    print(error)
print(sorted(path.name for path in disk.iterdir()))
ballast.unlink()
report = convert(source, disk / "out", to="native", progress=None, max_shard_bytes=100_000)
print(report.is_resumed, 0 < report.items_written < report.items)
print(sorted(path.name for path in disk.iterdir()))
"""


def test_a_disk_that_fills_up_keeps_what_is_done(tmp_path):
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine gives no mount namespace, so no small disk can be made")
    layouts.hf_folder(tmp_path / "hf")
    disk = tmp_path / "disk"
    disk.mkdir()
    environment = os.environ | {"PROGRAM": FULL_DISK, "PYTHONPATH": f"{REPOSITORY / 'tests'}:{REPOSITORY}:{REPOSITORY / 'kernels'}"}
    command = f'mount -t tmpfs -o size=800k none {disk} && exec {sys.executable} -c "$PROGRAM" {tmp_path / "hf"} {disk}'
    done = subprocess.run(["unshare", "-Urm", "bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    message, left, resumed, finished = done.stdout.splitlines()
    assert "disk is full" in message
    assert "bytes are free" in message
    assert "goes on where" in message
    assert left == "['.out.converting', 'ballast']"
    assert resumed == "True True"
    assert finished == "['out']"
