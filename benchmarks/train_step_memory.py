"""Peak memory of one contestant's training step, in a process that does nothing else. ``train_step.py`` starts it once per contestant.

It imports what the contestant needs, builds it, takes steps, and prints JSON: resident memory after the imports, at its peak while
building, and at its peak during the steps (the kernel's high-water mark, set back before each phase), in MiB. glibc is told by its
environment to give freed memory back at once, so that a peak is what a step holds and not what the heap has kept; without ``trimmed`` it
runs as it comes. The peer's process imports our configuration code too, some MiB.

    python benchmarks/train_step_memory.py ours lora
    python benchmarks/train_step_memory.py peer lora grouped_mm
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TRIMMED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Blocks of 64 KiB and more are mapped singly and unmapped when freed; glibc would otherwise raise that limit to 32 MiB as it runs."""
STEPS = 3


def measure(contestant: str, case: str, experts: str | None = None, *, trimmed: bool = True, threads: int = 2) -> dict[str, float]:
    """Run this file in a fresh process and return what it prints: ``imports``, ``build_peak``, ``step_peak`` and ``step_increase``, MiB.

    Raises:
        RuntimeError: the process failed; its last lines are in the message.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")} | (TRIMMED if trimmed else {})
    command = [sys.executable, str(Path(__file__).resolve()), contestant, case, *([experts] if experts else [])]
    environment |= {"MS4_BENCH_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Build the contestant named on the command line, take steps, print."""
    contestant, case, *experts = sys.argv[1:]
    # All that the contestant will import belongs to the baseline, so nothing is left to be loaded during the steps.
    contestants: Any = importlib.import_module("train_step_contestants")
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(int(os.environ.get("MS4_BENCH_THREADS", "2")))
    work = contestants.CASES[case]
    if contestant == "peer":
        importlib.import_module("transformers.models.mistral4.modeling_mistral4")
        if work.mode == "lora":
            importlib.import_module("peft")
    imports = settle()
    built = contestants.build_ours(work) if contestant == "ours" else contestants.build_peer(work, experts[0])
    build_peak = resident("VmHWM")
    settle()
    for _ in range(STEPS):
        built.step()
    step_peak = resident("VmHWM")
    print(json.dumps({"imports": imports, "build_peak": build_peak, "step_peak": step_peak, "step_increase": step_peak - imports}))


def settle() -> float:
    """Free what can be freed, set the high-water mark back to what is resident, and return that, MiB."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident("VmRSS")


def resident(key: str) -> float:
    """``VmRSS``, resident memory, or ``VmHWM``, its high-water mark, MiB. Not ru_maxrss, which a child inherits from its parent."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


if __name__ == "__main__":
    main()
