"""Runs attacks inside a sandbox, several side by side, and outside, one below a process of its own that stands for its grader."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
from support.hostile_host import Result, Targets
from support.hostile_programs import EXPECTED, FILES, KERNEL, LIMITS, NETWORK, PROCESSES, STDIN, Attack
from support.hostile_programs_bombs import BOMBS
from support.hostile_programs_cheats import CHEATS, NAIVE_GRADER, Cheat

from ms4_evals.sandbox.base import Outcome, Sandbox

ATTACKS = tuple(attack for attack in FILES + NETWORK + PROCESSES + KERNEL + BOMBS if attack.machine in (None, platform.machine()))
PROGRAMS: tuple[Attack | Cheat, ...] = ATTACKS + CHEATS
_PARENT = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
_PATIENCE_SECONDS = 8.0


@dataclass(frozen=True)
class Attempt:
    """One attack inside: how it ended, what it reached, what it left."""

    outcome: Outcome
    effects: list[str]
    seconds: float


def attempt(sandbox: Sandbox, program: Attack | Cheat) -> Attempt:
    with Targets() as targets:
        source = program.program if isinstance(program, Attack) else program.source.encode()
        files = {"main.py": source, "facts.json": targets.facts(inside=True)}
        limits = program.limits if isinstance(program, Attack) else LIMITS
        begun = time.monotonic()
        outcome = sandbox.run(files, ("-I", "-S", "main.py", targets.marker), stdin=STDIN, limits=limits)
        seconds = time.monotonic() - begun
        code = -outcome.signal if outcome.signal is not None else outcome.exit_code
        result = Result(outcome.stdout, code, outcome.wall_seconds)
        effects = targets.effects(result)
        if isinstance(program, Attack) and not program.hurts_only_itself and program.succeeds(targets, result):
            effects.append("it did what it wanted")
        return Attempt(outcome, effects, seconds)


def attempt_all(sandbox: Sandbox, workers: int = 4) -> tuple[dict[str, Attempt], int]:
    """Every program by name, and by how many bytes this process grew at most meanwhile."""
    attempt(sandbox, PROGRAMS[0])
    process, over = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    peak = [before]

    def sample() -> None:
        while not over.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        with ThreadPoolExecutor(workers) as pool:
            attempts = list(pool.map(lambda program: attempt(sandbox, program), PROGRAMS))
    finally:
        over.set()
        sampler.join()
    return {program.name: found for program, found in zip(PROGRAMS, attempts, strict=True)}, peak[0] - before


def outside(attack: Attack, targets: Targets) -> Result:
    """Runs an attack with nothing to hold it, as a grader does that waits for the end of its output."""
    (targets.work / "main.py").write_bytes(attack.program)
    (targets.work / "facts.json").write_bytes(targets.facts(inside=False))
    command = [sys.executable, "-I", "-S", "main.py", targets.marker]
    if attack.parent:
        command = [sys.executable, "-I", "-S", "-c", _PARENT, *command]
    begun = time.monotonic()
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=targets.work,
        env=targets.environment(),
        pass_fds=[targets.leaked],
        start_new_session=True,
    ) as process:
        patience = 0.6 if attack.name == "stops-itself" else _PATIENCE_SECONDS
        try:
            stdout, _ = process.communicate(STDIN, patience)
            answered = True
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, answered = process.communicate()[0], False
        return Result(stdout, process.returncode, time.monotonic() - begun, answered)


def outside_all(attacks: Sequence[Attack] = ATTACKS, workers: int = 4) -> dict[str, bool]:
    """Name -> whether the attack did what it wanted."""

    def one(attack: Attack) -> bool:
        with Targets() as targets:
            return attack.succeeds(targets, outside(attack, targets))

    with ThreadPoolExecutor(workers) as pool:
        return dict(zip((attack.name for attack in attacks), pool.map(one, attacks), strict=True))


def naive_verdict(cheat: str, source: str) -> bool:
    """Whether a grader in the program's own process says that it is right."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "main.py").write_text(source)
        (folder / "tests.json").write_text(json.dumps({"expected": EXPECTED.decode()}))
        (folder / "grader.py").write_text(NAIVE_GRADER)
        result = subprocess.run(
            [sys.executable, "-I", "-S", "grader.py"], cwd=folder, env={"PATH": os.defpath}, capture_output=True, timeout=30, check=False
        )
    return result.returncode == 0 or b"PASSED" in result.stdout
