"""The SLURM file: its body run by bash, with stand-ins for ``srun`` and ``scontrol`` that start two tasks on this machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.distributed import ROOT, free_port, rank_environment
from support.sft_files import metrics, sft_run, write_files

from ms4_train.config import to_yaml

SBATCH = ROOT / "configs" / "launch" / "slurm.sbatch"
SRUN = """
import os, signal, subprocess, sys
command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
shared = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x1)"}
tasks = [subprocess.Popen(command, env={**os.environ, **shared, "SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)}) for n in range(2)]
signal.signal(signal.SIGTERM, lambda *_: [task.send_signal(signal.SIGTERM) for task in tasks])
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
SCONTROL = """
if [[ $1 == show ]]; then printf '%s\\n' 127.0.0.1 other-node; else echo "$@" >> "$LOG"; fi
"""
# What a rank is told, and then an end by the code that it is given, or by SIGTERM.
MS4 = """
echo "$SLURM_PROCID $RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT $*" >> "$LOG.ranks"
if [[ $3 == wait ]]; then trap 'exit 143' TERM; touch "$LOG.ready.$RANK"; while :; do sleep 0.1; done; fi
if [[ $3 == killed ]]; then
  if ((RANK)); then kill -KILL $$; else exit 76; fi
fi
exit "$3"
"""


@pytest.fixture
def cluster(tmp_path):
    """Starts the file as SLURM would start it on the first node; returns the process."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in (
        ("srun", f"#!{sys.executable}\n{SRUN}"),
        ("scontrol", f"#!/bin/bash\n{SCONTROL}"),
        ("ms4-stand-in", f"#!/bin/bash\n{MS4}"),
    ):
        (programs / name).write_text(body)
        (programs / name).chmod(0o755)

    def start(*arguments, program="ms4-stand-in", restarts=0, **more):
        own = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        environment = {key: value for key, value in rank_environment(0, 1, 0).items() if key not in own}
        environment |= {
            "SLURM_JOB_ID": "12345",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_JOB_NUM_NODES": "1",
            "LOG": str(tmp_path / "log"),
        }
        environment |= {"PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}", "MS4": program}
        environment |= {"SLURM_RESTART_COUNT": str(restarts), **more}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(["bash", SBATCH, *map(str, arguments)], env=environment, cwd=ROOT, start_new_session=True, **streams)

    return start


def finish(process, timeout=60):
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


def requeued(folder):
    log = folder / "log"
    return log.read_text().splitlines() if log.exists() else []


def test_bash_reads_it_and_it_asks_for_time_to_save():
    assert subprocess.run(["bash", "-n", SBATCH], check=False, capture_output=True).returncode == 0
    text = SBATCH.read_text()
    assert int(re.search(r"^#SBATCH --signal=B:USR1@(\d+)$", text, re.M).group(1)) >= 120  # type: ignore[union-attr]
    asked = re.findall(r"^#SBATCH (--[\w-]+)", text, re.M)
    assert {"--requeue", "--time", "--nodes", "--ntasks-per-node", "--gpus-per-node", "--output"} <= set(asked)
    # SLURM stops looking at the first command.
    assert text.rindex("#SBATCH --") < text.index("set -euo")


def test_each_task_is_a_rank(cluster, tmp_path):
    code, output = finish(cluster("run.yaml", 0, "a=b c"))
    assert code == 0, output
    ranks = sorted((tmp_path / "log.ranks").read_text().splitlines())
    port = 20000 + 12345 % 20000
    assert ranks == [f"{n} {n} {n} 2 2 127.0.0.1 {port} train run.yaml 0 a=b c" for n in range(2)]
    assert requeued(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "restarts", "again"), [(143, 0, False), (76, 2, True), (76, 3, False), (2, 0, False), (75, 0, False), (130, 0, False)]
)
def test_a_job_is_queued_again_where_that_helps(cluster, tmp_path, code, restarts, again):
    assert finish(cluster("run.yaml", code, restarts=restarts))[0] == code
    assert requeued(tmp_path) == (["requeue 12345"] if again else [])


@pytest.mark.parametrize(("restarts", "again"), [(0, True), (3, False)])
def test_a_job_that_lost_a_rank_to_a_signal_is_queued_again(cluster, tmp_path, restarts, again):
    """The others end with 76, but ``srun`` gives the code of the killed one."""
    assert finish(cluster("run.yaml", "killed", restarts=restarts))[0] == 137
    assert requeued(tmp_path) == (["requeue 12345"] if again else [])


@pytest.mark.parametrize(("number", "again"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)], ids=["time is up", "cancelled"])
def test_a_signal_reaches_every_rank_and_is_waited_for(cluster, tmp_path, number, again):
    process = cluster("run.yaml", "wait", restarts=7)
    deadline = time.monotonic() + 60
    while not all((tmp_path / f"log.ready.{rank}").exists() for rank in range(2)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)  # to the batch shell alone, as --signal=B: does
    code, output = finish(process)
    assert code == 143, output
    assert requeued(tmp_path) == (["requeue 12345"] if again else [])


def test_without_a_run_file_it_says_how_it_is_called(cluster):
    code, output = finish(cluster())
    assert code == 2
    assert output.startswith("usage: sbatch")


@pytest.mark.slow
def test_two_ranks_train(cluster, tmp_path):
    write_files(tmp_path, rows=30)
    run = sft_run(tmp_path, training={"max_steps": 2}, parallel={"expert_parallel_size": 2, "data_parallel_size": 2})
    (tmp_path / "run.yaml").write_text(to_yaml(run))
    code, output = finish(cluster(tmp_path / "run.yaml", "seed=6", program="ms4", MASTER_PORT=str(free_port())), timeout=400)
    assert code == 0, output
    assert list(metrics(tmp_path)) == [1, 2]
    assert (tmp_path / "out" / "model" / "config.json").exists()
