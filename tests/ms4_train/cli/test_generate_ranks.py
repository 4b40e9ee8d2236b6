"""``ms4 generate --nproc``: the answers of one process, and what is refused before anything is started."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file
from support.distributed import ROOT, free_port, rank_environment
from support.eval_files import write_model, write_ones_adapter
from typer.testing import CliRunner

from ms4_train.cli.generate_ranks import check_processes, without_nproc
from ms4_train.cli.main import app
from ms4_train.errors import MS4Error, ParallelError

QUESTION = "7*3+8 mod 10 ="


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("generate") / "model")


def ms4(*arguments):
    """As a user runs it; returns (exit code, standard output, standard error)."""
    own = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    environment = {key: value for key, value in os.environ.items() if key not in own}
    paths = [str(ROOT / name) for name in (".", "kernels", "recipes", "evals")]
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "ms4_train.cli", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
    return done.returncode, done.stdout, done.stderr


def answers(text):
    """Of ``--json``, without what time they took."""
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in text.splitlines()]


@pytest.mark.slow
def test_answers_are_those_of_one_process(model, tmp_path):
    adapter = write_ones_adapter(model, tmp_path / "adapter")
    asked = [
        "generate",
        model,
        QUESTION,
        "--both-modes",
        "--json",
        "--temperature",
        0.8,
        "--n",
        3,
        "--max-tokens",
        12,
        "--adapter",
        adapter,
    ]
    _, one, _ = ms4(*asked)
    code, two, said = ms4(*asked, "--nproc", 2)
    assert code == 0, said
    assert answers(two) == answers(one)
    assert len(answers(two)) == 6
    code, shown, said = ms4("generate", model, QUESTION, "--max-tokens", 5, "--nproc=4")
    assert code == 0, said
    assert shown == ms4("generate", model, QUESTION, "--max-tokens", 5)[1]
    assert said.count("prompt tokens,") == 1, "one rank speaks"


@pytest.mark.slow
def test_an_error_of_rank_0_is_one_line_and_its_exit_code(model):
    code, shown, said = ms4("generate", model, QUESTION, "--max-tokens", 5000, "--nproc", 2)
    assert code == 2
    assert "--max-tokens" in said
    assert "Traceback" not in shown + said


@pytest.mark.slow
def test_ranks_that_were_started_with_another_model_are_refused(model, tmp_path):
    """As two machines would be, each with a command of its own; a copy of the model is the same model."""
    other, _ = shutil.copytree(model, tmp_path / "other"), shutil.copytree(model, tmp_path / "copy")
    weights = load_file(other / "model.safetensors")
    save_file(
        {name: weight + (name == "lm_head.weight") for name, weight in weights.items()}, other / "model.safetensors", {"format": "pt"}
    )
    for second, code in ((other, 2), (tmp_path / "copy", 0)):
        port = free_port()
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "ms4_train.cli", "generate", str(path), QUESTION, "--max-tokens", "3"],
                env=rank_environment(rank, 2, port),
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank, path in enumerate((model, second))
        ]
        said = [process.communicate(timeout=200)[0] for process in ranks]
        assert [process.returncode for process in ranks] == [code, code], said
        assert all(("MODEL: differs between ranks" in text) == (code == 2) for text in said), said


def test_a_number_of_processes_that_does_not_fit_names_those_that_do(model):
    check_processes(model, 4)
    with pytest.raises(ParallelError) as raised:
        check_processes(model, 3)
    assert (raised.value.key, raised.value.fix) == ("--nproc", "use 2 or 4.")


@pytest.mark.parametrize("number", ["0", "3"])
def test_bad_numbers_are_refused_before_anything_is_started(model, number):
    result = CliRunner().invoke(app, ["generate", str(model), QUESTION, "--nproc", number])
    assert isinstance(result.exception, MS4Error)
    assert result.exception.key == "--nproc"


def test_ranks_get_the_command_line_without_the_number():
    given = ["generate", "m", "--nproc", "2", "--seed", "3", "--nproc=4", "--", "--nproc", "x"]
    assert without_nproc(given) == ["generate", "m", "--seed", "3", "--", "--nproc", "x"]
