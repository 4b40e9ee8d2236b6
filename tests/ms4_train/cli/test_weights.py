"""The commands on real folders: what they print, write and exit with."""

import json
import re
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file
from support.layouts import hf_folder, native_folder, native_fp8_folder, nvfp4_folder
from typer.testing import CliRunner

from ms4_train.cli.weights import app
from ms4_train.errors import MS4Error

RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})


def run(*arguments):
    result = RUNNER.invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "model"
    hf_folder(folder, tokenizer=True)
    return folder


@pytest.fixture(scope="module")
def fp8(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fp8") / "model"
    native_fp8_folder(folder, tokenizer=True)
    return folder


@pytest.mark.parametrize("to", ["hf", "native", "native-fp8", "hf-fp8"])
@pytest.mark.parametrize("source", ["plain", "fp8"])
def test_convert_inspect_verify_diff(tmp_path, request, source, to, fp8):
    """Every conversion is whole, described, proven against its source, and equal to it where nothing is lost."""
    folder, out = request.getfixturevalue(source), tmp_path / "out"
    scales = ["--scales", fp8] if source == "plain" and "fp8" in to else []
    result = run("convert", folder, out, "--to", to, *scales)
    assert result.exit_code == 0, result.output
    assert f"{to}: " in result.output
    assert "MB/s written" in result.output
    assert "nothing is missing or wrong" in result.output
    content = json.loads(run("inspect", out, "--json").output)
    assert (content["layout"], content["problems"], content["has_sums"], content["has_tokenizer"]) == (to, [], True, True)
    verified = run("verify", out, "--against", folder, "--prompts", "1")
    assert verified.exit_code == 0, verified.output
    assert verified.output.splitlines()[-1] == "PASS"
    is_lossless = (source, to) not in {("plain", "native-fp8"), ("plain", "hf-fp8"), ("fp8", "hf-fp8")}
    assert ("tolerance 0 " in verified.output) == is_lossless
    assert ("every one equal to the bit" in verified.output) == is_lossless
    compared = run("diff", folder, out)
    same = is_lossless and (source == "plain" or to == "native-fp8")  # fp8 to bf16 is rounded once, which diff counts unless told not to
    assert (compared.exit_code == 0) == same, compared.output
    assert (run("diff", folder, out, "--rounded").exit_code == 0) == is_lossless
    assert run("diff", folder, out, "--tolerance", "0.1").exit_code == 0


def test_four_bits_become_sixteen(tmp_path):
    nvfp4_folder(tmp_path / "a")
    assert run("convert", tmp_path / "a", tmp_path / "b", "--to", "native", "--dtype", "float32").exit_code == 0
    assert "F32" in run("inspect", tmp_path / "b").output
    result = run("diff", tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 0, result.output  # fp32 holds every value of the source
    result = run("verify", tmp_path / "b", "--against", tmp_path / "a")
    assert result.exit_code == 0
    assert "no tekken.json" in result.output


def test_inspect_lists_problems_and_exits_with_1(tmp_path):
    native_folder(tmp_path)
    tensors = load_file(tmp_path / "consolidated.safetensors")
    del tensors["norm.weight"]
    save_file(tensors, tmp_path / "consolidated.safetensors")
    result = run("inspect", tmp_path)
    assert result.exit_code == 1
    assert re.search(r"problem: .*norm\.weight.*missing", result.output)
    result = run("inspect", tmp_path, "--json")
    assert result.exit_code == 1
    assert json.loads(result.output)["problems"]


def test_diff_finds_a_flipped_bit_and_json_says_where(tmp_path, plain):
    native_folder(tmp_path, tokenizer=True)
    stored = load_file(tmp_path / "consolidated.safetensors")
    stored["layers.1.experts.2.w2.weight"][5, 6] *= -1
    save_file(stored, tmp_path / "consolidated.safetensors")
    result = run("diff", plain, tmp_path)
    assert result.exit_code == 1
    assert "model.layers.1.mlp.experts.2.down_proj.weight" in result.output
    content = json.loads(run("diff", plain, tmp_path, "--json").output)
    assert [(piece["name"], piece["worst"]) for piece in content["pieces"]] == [("model.layers.1.mlp.experts.2.down_proj.weight", [5, 6])]
    assert run("diff", plain, tmp_path, "--tolerance", "1").exit_code == 0
    assert "model.norm.weight" not in result.output
    assert "model.norm.weight" in run("diff", plain, tmp_path, "--all").output


def test_verify_fails_with_1_and_names_layer_and_weight(tmp_path, plain):
    """The negative control of the whole command: gate and up of one expert change places on the way."""
    native_folder(tmp_path, tokenizer=True)
    stored = load_file(tmp_path / "consolidated.safetensors")
    names = [f"layers.1.experts.{expert}.{{}}.weight" for expert in range(8)]
    for name in names:
        stored[name.format("w1")], stored[name.format("w3")] = stored[name.format("w3")], stored[name.format("w1")]
    save_file(stored, tmp_path / "consolidated.safetensors")
    result = run("verify", tmp_path, "--against", plain)
    assert result.exit_code == 1
    assert result.output.splitlines()[-1] == "FAIL"
    assert "first beyond its tolerance: layer 1, experts" in result.output
    assert "gate and up are swapped" in result.output
    assert "there is no SHA256SUMS: a damaged value would not be noticed" in result.output
    content = json.loads(run("verify", tmp_path, "--against", plain, "--json").output)
    assert content["passed"] is False
    assert content["logits"]["first_failing"] == "layer 1, experts"


def test_verify_alone_checks_structure_and_sums(tmp_path, plain):
    run("convert", plain, tmp_path / "out", "--to", "native")
    result = run("verify", tmp_path / "out")
    assert result.exit_code == 0
    assert "files match SHA256SUMS" in result.output
    assert "logits: not compared" in result.output
    file = tmp_path / "out" / "consolidated.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-100] ^= 4
    file.write_bytes(damaged)
    with pytest.raises(MS4Error, match=r"consolidated\.safetensors.*differs"):
        run("verify", tmp_path / "out")
    assert run("verify", tmp_path / "out", "--skip-sums").exit_code == 0
    assert run("verify", tmp_path / "out", "--skip-sums", "--against", plain).exit_code == 1


def test_a_dry_run_of_a_conversion(tmp_path, plain):
    result = run("convert", plain, tmp_path / "out", "--to", "native", "--dry-run", "--max-shard-size", "100KB")
    assert result.exit_code == 0
    assert "nothing was written" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect", "{tmp}/nowhere"], "no such folder"),
        (["convert", "{tmp}/nowhere", "{tmp}/out", "--to", "hf"], "no such folder"),
        (["convert", "{plain}", "{tmp}/out", "--to", "native-fp8"], "scales"),
        (["convert", "{plain}", "{tmp}/out", "--to", "native", "--max-shard-size", "big"], "is no size"),
        (["diff", "{plain}", "{tmp}/nowhere"], "no such folder"),
        (["diff", "{plain}", "{plain}", "--b", "native"], "no Mistral-native ones"),
        (["verify", "{tmp}/nowhere"], "no such folder"),
        (["verify", "{plain}", "--against", "{plain}", "--prompts", "{tmp}/none.txt"], "none.txt"),
        (["verify", "{plain}", "--against", "{plain}", "--prompts", "100"], "built-in prompts"),
    ],
)
def test_errors_are_typed_and_leave_nothing(tmp_path, plain, arguments, words):
    with pytest.raises(MS4Error) as caught:
        run(*(argument.format(tmp=tmp_path, plain=plain) for argument in arguments))
    assert words in str(caught.value)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_a_process_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "ms4_train.cli", "weights", "diff", str(tmp_path), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
