"""The commands end to end on real files, and their errors as the user sees them."""

from pathlib import Path

import pytest
import torch
from support.checkpoints import full_section, our_logits, randomise, relative_error, saved_tiny
from typer.testing import CliRunner

from ms4_train.adapters import adapter_tensors, attach, save_adapter
from ms4_train.cli.model import app
from ms4_train.errors import AdapterError, ConfigError, MS4Error, StorageError, WeightsError
from ms4_train.weights import base_fingerprint, load_model

TINY = Path(__file__).resolve().parents[3] / "configs" / "models" / "tiny.yaml"


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "150"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize("command", ["init", "add-vision", "merge", "tokenizer"])
def test_help_shows_examples(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"ms4 model {command}" in result.output


def test_tokenizer_then_model(tmp_path):
    tekken = tmp_path / "tekken.json"
    result = run("tokenizer", tekken, "--ranks", 300)
    assert "338 tokens" in result.output
    result = run("init", TINY, tmp_path / "m", "--seed", 3, "--tokenizer", tekken, "--dtype", "float32")
    assert result.exit_code == 0
    model = load_model(tmp_path / "m", dtype=torch.float32)
    assert model.config.vocab_size == 338
    for text in (
        "338",
        f"{model.config.num_parameters():,}",
        "F32",
        "32 of width 64, 4 per token + 1 shared",
        "plain",
        "nothing is missing",
    ):
        assert text in result.output
    assert base_fingerprint(tmp_path / "m") in "".join(result.output.split())


def test_a_text_model_is_given_eyes(tmp_path):
    """Fresh in one step, or added to a text model: the same checkpoint, for the same seed."""
    tekken = tmp_path / "tekken.json"
    run("tokenizer", tekken, "--ranks", 300)
    tiny_vision = TINY.with_name("tiny-vision.yaml")
    run("init", TINY, tmp_path / "base", "--seed", 3, "--tokenizer", tekken)
    result = run("add-vision", tmp_path / "base", tmp_path / "seeing", "--vision", tiny_vision, "--seed", 3)
    assert result.exit_code == 0
    for text in ("vision 160,896", "2 layers of width 64", "names as in the public repository", "nothing is missing"):
        assert text in result.output, text
    run("init", tiny_vision, tmp_path / "fresh", "--seed", 3, "--tokenizer", tekken)
    for name in ("model.safetensors", "config.json", "tekken.json"):
        assert (tmp_path / "seeing" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes(), name
    with pytest.raises(StorageError, match="choose another folder"):
        run("add-vision", tmp_path / "base", tmp_path / "seeing", "--vision", tiny_vision)


def test_merge_gives_the_adapted_model(tmp_path):
    base = saved_tiny(tmp_path / "base")
    (tmp_path / "base" / "tekken.json").write_text("{}")
    attach(base, full_section())
    randomise(adapter_tensors(base))
    save_adapter(
        adapter_tensors(base),
        tmp_path / "adapter",
        section=full_section(),
        config=base.config,
        base_path=tmp_path / "base",
        base_fingerprint=base_fingerprint(tmp_path / "base"),
    )
    assert run("merge", tmp_path / "base", tmp_path / "adapter", tmp_path / "out").exit_code == 0
    merged = load_model(tmp_path / "out", dtype=torch.float32)
    assert relative_error(our_logits(merged), our_logits(base)) < 1e-4  # fp32 products in another order
    assert (tmp_path / "out" / "tekken.json").read_text() == "{}"
    with pytest.raises(StorageError, match="choose another folder"):
        run("merge", tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    saved_tiny(tmp_path / "other", seed=9)
    with pytest.raises(AdapterError, match="another model"):
        run("merge", tmp_path / "other", tmp_path / "adapter", tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["init", "absent.yaml", "{tmp}/m"], ConfigError, "absent.yaml"),
        (["init", "{tmp}/bad.yaml", "{tmp}/m"], ConfigError, "hiden_size"),
        (["init", TINY, "{tmp}/m", "--tokenizer", "{tmp}/none.json"], MS4Error, "none.json"),
        (["init", Path(TINY).with_name("mistral-small-4.yaml"), "/proc/ms4"], StorageError, "/proc/ms4"),
        (["merge", "{tmp}/nowhere", "{tmp}", "{tmp}/out"], WeightsError, "nowhere"),
        (["add-vision", "{tmp}/nowhere", "{tmp}/out", "--vision", TINY.with_name("tiny-vision.yaml")], WeightsError, "nowhere"),
        (["tokenizer", "{tmp}/tekken.json", "--ranks", "3"], MS4Error, "3 ranks"),
        (["tokenizer", "{tmp}/other.json"], MS4Error, "tekken"),
    ],
)
def test_errors_name_the_place_and_leave_nothing(tmp_path, arguments, error, words):
    (tmp_path / "bad.yaml").write_text("hiden_size: 3\n")
    with pytest.raises(error) as caught:
        run(*(str(argument).replace("{tmp}", str(tmp_path)) for argument in arguments))
    assert words in str(caught.value)
    assert caught.value.exit_code in (2, 75)  # 75 where a disk is full, as /proc says it is
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]
