"""The quickstart at a scale of seconds: every step runs, an interrupted run goes on, and its promises can fail."""

import io
import json

import pytest
import torch
from rich.console import Console

from ms4_recipes import quickstart

SMALL = quickstart.Scale(
    tokenizer_ranks=300,
    digit_rows=60,
    modulus7_rows=60,
    train_overrides=("training.max_steps=2", "training.eval_strategy=no", "training.save_steps=1", "tracking.peak_flops=1.0e+12"),
    evaluation_overrides=("tasks.0.problems=3", "tasks.1.problems=3", "modes.high.max_tokens=8", "modes.none.max_tokens=8"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder, claims and printed text of one small run."""
    output, text = tmp_path_factory.mktemp("quickstart") / "out", io.StringIO()
    claims = quickstart.run(output, scale=SMALL, console=Console(file=text, width=200))
    torch.use_deterministic_algorithms(False)
    return output, claims, text.getvalue()


def test_every_step_leaves_its_files(finished):
    output, _, text = finished
    names = ("tekken.json", "base/config.json", "digits.jsonl", "modulus7.jsonl", "tiny_full/model/model.safetensors")
    names += ("tiny_lora/adapter/adapter_model.safetensors", "results.sqlite", quickstart.FINISHED)
    names += ("leaderboard/index.html", "leaderboard/leaderboard.png", "leaderboard/leaderboard.json")
    assert [name for name in names if not (output / name).exists()] == []
    assert str(output / "leaderboard" / "index.html") in text
    assert "where the time went" in text


def test_a_model_of_two_steps_keeps_no_promise(finished):
    _, claims, text = finished
    assert [claim.holds for claim in claims if "at least" in claim.text] == [False] * 3
    assert "does not hold" in text


def test_an_interrupted_run_goes_on(finished):
    output, claims, _ = finished
    (output / quickstart.FINISHED).unlink()
    (output / "leaderboard" / "index.html").unlink()
    files = [path for name in ("base", "tiny_full", "tiny_lora") for path in (output / name).rglob("*.safetensors")]
    before = {path: path.stat().st_mtime_ns for path in files}
    again = quickstart.run(output, scale=SMALL, console=Console(file=io.StringIO()))
    torch.use_deterministic_algorithms(False)
    assert again == claims
    assert before == {path: path.stat().st_mtime_ns for path in files}
    assert (output / "leaderboard" / "index.html").exists()


def _report(high, none, *, low, second, chars=(60, 12)):
    def task(name, high, none, low):
        modes = [
            {"mode": mode, "score": {"value": value}, "lengths": {"total_chars": {"all": {"mean": mean}}}}
            for mode, value, mean in (("high", high, chars[0]), ("none", none, chars[1]))
        ]
        return {"task": f"arithmetic_{name}", "modes": modes, "high_minus_none": {"value": high - none, "low": low, "high": 1.0}}

    return json.loads(json.dumps({"tasks": [task("digits", high, none, low), task("modulus7", second, 0.1, 0.0)]}))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (_report(0.95, 0.2, low=0.6, second=0.1), _report(0.9, 0.2, low=0.6, second=0.5), [True] * 4),
        (_report(0.89, 0.2, low=0.6, second=0.1), _report(0.9, 0.2, low=0.6, second=0.5), [False, True, True, True]),
        (_report(0.95, 0.6, low=0.2, second=0.1), _report(0.9, 0.2, low=0.6, second=0.5), [True, False, True, True]),
        (_report(0.95, 0.2, low=-0.1, second=0.1), _report(0.9, 0.2, low=0.6, second=0.5), [True, False, True, True]),
        (_report(0.95, 0.2, low=0.6, second=0.1, chars=(20, 12)), _report(0.9, 0.2, low=0.6, second=0.5), [True, True, False, True]),
        (_report(0.95, 0.2, low=0.6, second=0.1), _report(0.9, 0.2, low=0.6, second=0.39), [True, True, True, False]),
    ],
)
def test_promises_are_held_against_the_reports(before, after, expected):
    assert [claim.holds for claim in quickstart.measure(before, after)] == expected


def test_ranks_share_the_experts_and_take_as_many_steps(tmp_path, monkeypatch):
    """What would be started; the slow test starts it."""
    started = []
    monkeypatch.setattr(quickstart, "_train_on_ranks", started.append)
    monkeypatch.setattr("ms4_recipes.sft.run", lambda config: pytest.fail("one process must not train"))
    run = quickstart.Quickstart(tmp_path, SMALL, 2, Console(file=io.StringIO()))
    with pytest.raises(BaseException, match="one process must not train"):
        quickstart.train(run, "full", quickstart.FULL, ["model.path=base"])
    assert {"training.num_train_epochs=2", "parallel.expert_parallel_size=2", "--nproc=2", "model.path=base"} <= set(started[0])


@pytest.mark.parametrize(("ranks", "choices"), [("3", "1, 2, 4, 8, 16, 32"), ("0", "1, 2, 4")])
def test_ranks_that_cannot_share_the_experts_are_refused(ranks, choices, capsys):
    assert quickstart.main(["--nproc", ranks]) == 2
    assert f"--nproc: {ranks} ranks cannot share 32 experts evenly. Fix: use one of {choices}" in capsys.readouterr().err


@pytest.mark.slow
def test_two_ranks_leave_the_same_files(tmp_path):
    """Two real ranks, started as a user starts them, at the small scale; ``make quickstart NPROC=2`` is the whole."""
    text = io.StringIO()
    quickstart.run(tmp_path / "out", scale=SMALL, nproc=2, console=Console(file=text, width=200))
    torch.use_deterministic_algorithms(False)
    assert "--nproc=2" in text.getvalue()
    for name in ("tiny_full/model/model.safetensors", "tiny_lora/adapter/adapter_model.safetensors", quickstart.FINISHED):
        assert (tmp_path / "out" / name).exists(), name


def test_user_errors_have_an_exit_code(tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    assert quickstart.main(["--output", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
