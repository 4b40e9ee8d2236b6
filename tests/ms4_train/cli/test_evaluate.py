"""``ms4 eval`` and ``ms4 leaderboard`` as a user calls them."""

import sqlite3
import sys
from pathlib import Path

import pytest
from support.eval_files import eval_run, write_model

from ms4_evals.store.results import ResultStore
from ms4_train.cli.main import main
from ms4_train.config import EvalRun, load_run, to_yaml

COMMANDS = [f"eval {name}" for name in ("run", "resume", "tasks", "servers", "status", "report", "compare", "export", "audit")]
ROOT = Path(__file__).resolve().parents[3]
CONFIGS = sorted((ROOT / "configs" / "eval").glob("*.yaml"))


def ms4(capsys, *arguments):
    """(exit code, standard output, standard error) of a command."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return caught.value.code or 0, captured.out, captured.err


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a model and a run file."""
    folder = tmp_path_factory.mktemp("cli")
    run = eval_run(write_model(folder / "tiny"), folder / "r.sqlite", tasks=[{"task": "arithmetic", "kind": "digits", "problems": 3}])
    (folder / "run.yaml").write_text(to_yaml(run))
    return folder


def test_from_a_file_to_a_leaderboard(files, capsys):
    code, out, err = ms4(capsys, "eval", "run", files / "run.yaml", "seed=3", "label=first")
    assert (code, err) == (0, "")
    assert "high - none" in out
    code, out, err = ms4(capsys, "leaderboard", "build", files / "r.sqlite", "--out", files / "out")
    assert (code, err) == (0, "")
    assert "first" in out
    for name in ("index.html", "leaderboard.png", "leaderboard.json"):
        assert str(files / "out" / name) in out.splitlines()
        assert (files / "out" / name).stat().st_size > 1000


def test_a_reader_that_leaves_before_the_table_has_its_files_all_the_same(files, monkeypatch, capfd):
    def leave(board):
        raise BrokenPipeError

    ms4(capfd, "eval", "run", files / "run.yaml")
    monkeypatch.setattr("ms4_evals.leaderboard.table.board_table", leave)
    monkeypatch.setattr("ms4_train.cli.main._discard_stdout", lambda: None)  # this process needs its standard output
    code, _, err = ms4(capfd, "leaderboard", "build", files / "r.sqlite", "--out", files / "early")
    assert (code, err) == (1, "")
    assert {path.name for path in (files / "early").iterdir()} >= {"index.html", "leaderboard.png", "leaderboard.json"}


def test_the_list_of_tasks(capsys):
    code, out, _ = ms4(capsys, "eval", "tasks")
    assert code == 0
    for name in ("aime", "digits", "letters", "modulus7", "livecodebench", "lcr"):
        assert name in out


def test_the_list_of_servers(capsys):
    code, out, _ = ms4(capsys, "eval", "servers")
    assert code == 0
    for name in ("vllm", "llama.cpp", "mistral"):
        assert name in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(capsys, command):
    code, out, _ = ms4(capsys, *command.split(), "--help")
    assert code == 0
    assert "Examples" in out
    assert f"ms4 {command} " in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["eval", "none.yaml"], ["ms4 eval run none.yaml"]),
        (["eval", "resume", "none.sqlite"], ["none.sqlite"]),
        (["eval", "run", "none.yaml"], ["none.yaml"]),
        (["eval", "run", "{files}/run.yaml", "modes.high.max_tokns=3"], ["max_tokns", "max_tokens"]),
        (["eval", "run", "{files}/run.yaml", "modes.none=null", "modes.high=null"], ["both modes"]),
        (["eval", "run", "{files}/run.yaml", "model.path=nowhere"], ["nowhere"]),
        (["leaderboard", "build", "none.sqlite"], ["none.sqlite"]),
        (["leaderboard", "build", "{files}/run.yaml"], ["not a results store"]),
    ],
)
def test_mistakes_are_one_line_with_a_fix_and_exit_code_two(files, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, _, err = ms4(capsys, *(argument.format(files=files) for argument in arguments))
    assert code == 2
    assert err.count("\n") == 1
    assert "Fix:" in err
    for word in words:
        assert word in err
    assert not list(tmp_path.iterdir()), "nothing half-written"


def test_a_training_file_is_refused(tmp_path, capsys):
    file = tmp_path / "sft.yaml"
    file.write_text("recipe: sft\noutput_dir: out\nmodel: {path: m}\ndata: {train: [{path: rows.jsonl}]}\n")
    code, _, err = ms4(capsys, "eval", "run", file)
    assert code == 2
    assert "ms4 train" in err


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_configurations_load(path):
    assert isinstance(load_run(path, []), EvalRun)


def test_there_are_configurations():
    assert {path.name for path in CONFIGS} >= {"aime.yaml", "arithmetic.yaml"}


def test_help_needs_neither_torch_nor_matplotlib():
    import subprocess

    script = (
        "import sys\nfrom ms4_train.cli.main import main\ntry:\n    main(['eval', '--list'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'matplotlib', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_run_goes_on_from_what_its_store_remembers(files, tmp_path, capsys):
    """A run that knows only a part of its samples, as after a kill, and no file: the same samples, the same report."""
    store = tmp_path / "r.sqlite"
    ms4(capsys, "eval", "run", files / "run.yaml", f"store={store}", "label=whole")
    (report,) = (tmp_path / "r-reports").glob("*.json")
    before = report.read_bytes()
    with sqlite3.connect(store) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        gone = connection.execute("DELETE FROM samples WHERE sample_id > 2").rowcount
    connection.close()
    assert gone > 0
    code, out, err = ms4(capsys, "eval", "resume", store)
    assert (code, err) == (0, "")
    assert f"{gone} samples drawn, 2 taken from the store" in out
    assert report.read_bytes() == before


def test_resuming_needs_one_run(files, tmp_path, capsys):
    store = tmp_path / "r.sqlite"
    for seed in (0, 1):
        ms4(capsys, "eval", "run", files / "run.yaml", f"store={store}", f"label=run{seed}", f"seed={seed}")
    code, _, err = ms4(capsys, "eval", "resume", store)
    assert code == 2
    assert "run0 (" in err
    assert "run1 (" in err
    for option in ("--run", "--label"):
        code, out, _ = ms4(capsys, "eval", "resume", store, option, "run1")
        assert code == 0
        assert "0 samples drawn" in out


def test_of_two_runs_of_one_label_none_is_taken_for_the_other(files, tmp_path, capsys):
    store = tmp_path / "r.sqlite"
    for seed in (0, 1):
        ms4(capsys, "eval", "run", files / "run.yaml", f"store={store}", "label=same", f"seed={seed}")
    with ResultStore.read(store) as reader:
        first = reader.runs()[0].run_id
    for arguments in ([], ["--run", "same"]):
        code, _, err = ms4(capsys, "eval", "resume", store, *arguments)
        assert code == 2
        assert first[:8] in err
    code, out, _ = ms4(capsys, "eval", "resume", store, "--run", first[:8])
    assert code == 0
    assert f"same-{first[:8]}.md" in out.replace("\n", "")
