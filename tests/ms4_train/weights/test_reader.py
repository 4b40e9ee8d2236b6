"""Every way in which files can disagree with a model is refused, with the file and the tensor named."""

import json
import logging

import pytest
import torch
from support.checkpoints import edit_json, rewrite, saved_tiny, write_safetensors
from support.models import tiny_config

from ms4_train.errors import MS4Error, UntrustedInputError, WeightsError
from ms4_train.weights.loading import expected_shapes
from ms4_train.weights.reader import check_tensors, read_tensors, scan_checkpoint, warn_of_vision

Q_A = "model.layers.0.self_attn.q_a_proj.weight"


@pytest.fixture
def single(tmp_path):
    saved_tiny(tmp_path / "m")
    return tmp_path / "m"


@pytest.fixture
def sharded(tmp_path):
    saved_tiny(tmp_path / "m", max_shard_bytes=100_000)
    return tmp_path / "m"


def check(folder):
    checkpoint = scan_checkpoint(folder)
    check_tensors(checkpoint, expected_shapes(tiny_config()))
    return checkpoint


def refused(folder):
    with pytest.raises(MS4Error) as caught:
        check(folder)
    assert caught.value.fix
    assert caught.value.file
    return caught.value


def test_whole_checkpoints_pass(single, tmp_path):
    assert check(single).layout == "Hugging Face, text"
    saved_tiny(tmp_path / "s", max_shard_bytes=100_000)
    assert len(check(tmp_path / "s").files) > 2
    assert check(single).dtype == torch.float32


def test_missing_weight(single):
    rewrite(single, lambda tensors: tensors.pop(Q_A))
    error = refused(single)
    assert error.key == Q_A
    assert "missing" in str(error)


def test_misspelt_weight_names_the_nearest(single):
    rewrite(single, lambda tensors: tensors.update({Q_A.replace("q_a", "qa"): tensors.pop(Q_A)}))
    assert Q_A.replace("q_a", "qa") in str(refused(single))


def test_unexpected_weight(single):
    rewrite(single, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.weight": torch.zeros(2)}))
    error = refused(single)
    assert isinstance(error, WeightsError)
    assert error.key == "model.layers.0.self_attn.q_proj.weight"
    assert str(single / "model.safetensors") == error.file


def test_misshapen_weight(single):
    rewrite(single, lambda tensors: tensors.update({Q_A: tensors[Q_A].t()}))
    error = refused(single)
    assert error.key == Q_A
    assert "[64, 24]" in str(error)
    assert "[24, 64]" in str(error)


def test_truncated_file(single):
    file = single / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    error = refused(single)
    assert isinstance(error, UntrustedInputError)
    assert "cut off" in str(error)


def test_index_that_names_a_missing_file(sharded):
    gone = sorted(sharded.glob("model-*.safetensors"))[1]
    gone.unlink()
    assert gone.name in str(refused(sharded))


def test_tensor_that_the_index_puts_elsewhere(sharded):
    index = sharded / "model.safetensors.index.json"
    first, second = sorted(path.name for path in sharded.glob("model-*.safetensors"))[:2]
    mapping = json.loads(index.read_text())["weight_map"]
    moved = next(name for name, file in mapping.items() if file == first)
    edit_json(index, lambda content: content["weight_map"].update({moved: second}))
    assert refused(sharded).key == moved


def test_tensor_stored_in_two_shards(sharded):
    files = sorted(sharded.glob("model-*.safetensors"))
    index = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    from safetensors.torch import load_file

    first, second = load_file(files[0]), load_file(files[1])
    name = next(iter(first))
    write_safetensors(files[1], second | {name: first[name]})
    error = refused(sharded)
    assert error.key == name
    assert "twice" in str(error)
    assert index[name] in str(error)


def test_tensor_stored_under_two_prefixes(single):
    older = "language_model." + Q_A
    rewrite(single, lambda tensors: tensors.update({older: tensors[Q_A]}))
    assert "twice" in str(refused(single))


def test_tensor_missing_from_the_index(sharded):
    edit_json(sharded / "model.safetensors.index.json", lambda content: content["weight_map"].pop(Q_A))
    assert refused(sharded).key == Q_A


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd", "model.bin", 7])
def test_index_cannot_point_outside_the_folder(sharded, name):
    edit_json(sharded / "model.safetensors.index.json", lambda content: content["weight_map"].update({Q_A: name}))
    assert refused(sharded).key == "weight_map"


def test_index_beside_a_single_file(sharded):
    (sharded / "model.safetensors").write_bytes(b"")
    assert "both" in str(refused(sharded))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("model.layers.0.self_attn.o_proj.weight", torch.float8_e4m3fn), ("model.layers.0.self_attn.o_proj.weight_scale_inv", torch.float32)],
)
def test_quantised_tensors(single, name, dtype):
    rewrite(single, lambda tensors: tensors.update({name: torch.zeros(64, 64).to(dtype)}))
    error = refused(single)
    assert error.key == name
    assert "quantised" in str(error) or "F8_E4M3" in str(error)


@pytest.mark.parametrize(
    ("files", "word"),
    [
        (["pytorch_model.bin"], "pickled"),
        (["params.json", "consolidated.safetensors"], "native"),
        (["adapter_config.json", "adapter_model.safetensors"], "adapter"),
        (["model-00001-of-00002.safetensors"], "index"),
        ([], "neither"),
    ],
)
def test_folders_without_readable_weights_say_what_they_hold(tmp_path, files, word):
    for name in files:
        (tmp_path / name).write_bytes(b"")
    assert word in str(refused(tmp_path))


def test_a_link_into_a_cache_that_was_emptied_is_named(tmp_path):
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / "gone")
    assert "model.safetensors: is a link to a file that is not there" in str(refused(tmp_path))


def test_vision_tensors_are_counted_and_left_out(single, caplog):
    rewrite(single, lambda tensors: tensors.update({f"vision_tower.x{number}": torch.zeros(1) for number in range(3)}))
    checkpoint = check(single)
    with caplog.at_level(logging.WARNING):
        warn_of_vision(checkpoint)
    assert len(checkpoint.vision_names) == 3
    assert "3 vision tensors" in caplog.text


def test_rows_are_read_alone(single):
    checkpoint = check(single)
    name = "model.layers.1.mlp.experts.down_proj"
    whole = dict(read_tensors(checkpoint, dtype=torch.float32))
    part = dict(read_tensors(checkpoint, {name: (2, 5)}, dtype=torch.float32))
    assert torch.equal(part[name], whole[name][2:5])
    assert all(torch.equal(part[other], whole[other]) for other in whole if other != name)


def test_file_that_shrinks_after_the_check_is_a_typed_error(single):
    checkpoint = check(single)
    file = single / "model.safetensors"
    file.write_bytes(file.read_bytes()[:50_000])
    with pytest.raises(WeightsError, match="cannot be read"):
        list(read_tensors(checkpoint, dtype=torch.float32))
