"""The same faults in runs as users start them: ``ms4 train --nproc``, torchrun and ``accelerate launch``."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.distributed import ROOT, rank_environment
from support.sft_files import metrics, sft_run, write_files

pytestmark = pytest.mark.slow
OWN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
MS4 = ["-m", "ms4_train.cli"]
LAUNCHERS = {
    "ms4": [*MS4, "train", "FILE", "--nproc", "2"],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *MS4, "train", "FILE"],
    "accelerate": [
        "-m",
        "accelerate.commands.accelerate_cli",
        "launch",
        "--config_file",
        "configs/launch/two_cpu_ranks.yaml",
        "--main_process_port",
        "0",
        "-m",
        "ms4_train.cli",
        "train",
        "FILE",
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("launched"))


def command(folder, output, launcher, **training):
    training = {"max_steps": 400, "save_strategy": "steps", "save_steps": 5, **training}
    parallel = {"expert_parallel_size": 2, "zero_stage": 0, "timeout_seconds": 60}
    config = sft_run(folder, output, training=training, parallel=parallel)
    file = folder / f"{output}.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json", exclude_unset=True)))
    return [sys.executable, *(part.replace("FILE", str(file)) for part in LAUNCHERS[launcher])]


def ranks_of(process):
    """{rank: process id} of the ranks that descend from a launcher."""
    found, waiting = {}, [process]
    while waiting:
        parent = waiting.pop()
        with contextlib.suppress(OSError):
            children = [int(child) for task in Path(f"/proc/{parent}/task").iterdir() for child in (task / "children").read_text().split()]
            waiting += children
            for child in children:
                for line in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                    if line.startswith(b"RANK="):
                        found[int(line[5:])] = child
    return found


def start(folder, output, launcher, **training):
    """A run that has saved its first state: (process, log, {rank: process id})."""
    environment = {name: value for name, value in rank_environment(0, 1, 0).items() if name not in OWN}
    log = (folder / f"{output}.log").open("w+")
    process = subprocess.Popen(
        command(folder, output, launcher, **training),
        env=environment,
        cwd=ROOT,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not list((folder / output).glob("checkpoints/step-*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    ranks = ranks_of(process.pid)
    assert sorted(ranks) == [0, 1], Path(log.name).read_text()[-3000:]
    return process, log, ranks


def end(process, log, ranks):
    """(exit code, output); no rank is left."""
    try:
        code = process.wait(120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    log.close()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{rank}").exists() for rank in ranks.values()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [rank for rank in ranks.values() if Path(f"/proc/{rank}").exists()] == []
    return code, Path(log.name).read_text()


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_killed_rank_ends_the_run_and_is_named(folder, launcher):
    process, log, ranks = start(folder, f"killed {launcher}", launcher)
    begin = time.monotonic()
    os.kill(ranks[1], signal.SIGKILL)
    code, output = end(process, log, ranks)
    assert time.monotonic() - begin < 60  # torchrun takes its own time after the ranks are gone
    assert output.count("error: rank 1 (") == 1
    assert f"process {ranks[1]}) ended in " in output
    if launcher == "ms4":
        assert code == 137
        assert "error: rank 1 was ended by SIGKILL." in output
        assert "Traceback" not in output
    else:
        assert code != 0


@pytest.mark.parametrize("launcher", ["ms4", "torchrun"])
def test_sigterm_to_the_launcher_saves_and_the_same_command_goes_on(folder, launcher):
    output = f"stopped {launcher}"
    process, log, ranks = start(folder, output, launcher)
    process.send_signal(signal.SIGTERM)
    code, said = end(process, log, ranks)
    assert "stopped by SIGTERM after step " in said
    if launcher == "ms4":
        assert code == 143
        assert said.count("stopped by SIGTERM") == 1  # all ranks say the same
    (folder / output / "metrics.jsonl").rename(folder / "before.jsonl")
    before = [json.loads(line) for line in (folder / "before.jsonl").read_text().splitlines()]
    done = max(line["step"] for line in before)
    (folder / "before.jsonl").rename(folder / output / "metrics.jsonl")
    environment = {name: value for name, value in rank_environment(0, 1, 0).items() if name not in OWN}
    resumed = subprocess.run(
        command(folder, output, launcher, max_steps=done + 3),
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert sorted(metrics(folder, output)) == list(range(1, done + 4))


def test_an_error_of_all_ranks_is_shown_once(folder):
    file = folder / "absent.yaml"
    config = sft_run(folder, "absent", data={"train": [{"path": str(folder / "absent.jsonl")}]}, parallel={"expert_parallel_size": 2})
    file.write_text(json.dumps(config.model_dump(mode="json", exclude_unset=True)))
    environment = {name: value for name, value in rank_environment(0, 1, 0).items() if name not in OWN}
    done = subprocess.run(
        [sys.executable, *MS4, "train", str(file), "--nproc", "2"], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("absent.jsonl") <= 2  # of rank 0 itself, and that another rank ended with it
    assert "Traceback" not in done.stderr
