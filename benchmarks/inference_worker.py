"""One contestant in a process of its own: commands come as JSON lines, answers go back the same way. ``inference_pool.py`` starts it.

It imports the standard library and the contestant's module, so that it runs in ``.venv`` and in ``.venv-peers``. A contestant has

    serves        whether requests can be added while others run
    facts         versions and settings
    variants(work) -> names           ways to run it; the fastest one of a case takes part in it
    prepare(variant, work)            whatever is done once, outside the clock
    generate(work) -> token lists     every prompt's answers in order, all computed anew
    submit(index, prompt, new_tokens), busy, step() -> (index, new tokens) pairs          where it serves

Exercise it: ``python benchmarks/inference.py --quick``.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

MODULES = {
    "ms4-train": "inference_ours",
    "transformers": "inference_transformers",
    "vLLM": "inference_vllm",
    "llama.cpp": "inference_llama",
}


def resident(key: str) -> float:
    """``VmRSS``, resident memory, or ``VmHWM``, its high-water mark, MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def forget_peak() -> None:
    """Set the high-water mark back to what is resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def busy_seconds() -> float:
    """CPU seconds that the machine's cores have spent on anything at all, or that its host took, since it started."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def serve(contestant: Any, work: dict[str, Any]) -> dict[str, Any]:
    """Add requests when their time comes and compute steps; when the first and the last token of each were there, seconds after it came."""
    arrivals, waiting = work["arrivals"], list(range(len(work["prompts"])))
    first, last, counts = ([0.0] * len(waiting), [0.0] * len(waiting), [0] * len(waiting))
    began = time.perf_counter()
    while waiting or contestant.busy:
        now = time.perf_counter() - began
        while waiting and arrivals[waiting[0]] <= now:
            index = waiting.pop(0)
            contestant.submit(index, work["prompts"][index], work["new_tokens"][index])
        if not contestant.busy:
            time.sleep(max(0.0, arrivals[waiting[0]] - now))
            continue
        told = contestant.step()
        now = time.perf_counter() - began
        for index, count in told:
            if count and not counts[index]:
                first[index] = now - arrivals[index]
            counts[index] += count
            last[index] = now - arrivals[index]
    if counts != work["new_tokens"]:
        raise RuntimeError(f"answers of {counts} tokens, {work['new_tokens']} were asked for")
    return {"first": first, "last": last}


class Worker:
    """What a process can be asked for."""

    def __init__(self) -> None:
        self._contestant: Any = None
        self._prepared: tuple[str, str] | None = None

    def load(self, name: str, model: dict[str, str], threads: int) -> dict[str, Any]:
        """Import the contestant and give it the model."""
        module = importlib.import_module(MODULES[name])
        imports = resident("VmRSS")
        started = time.perf_counter()
        self._contestant = module.Contestant(model, threads)
        return {
            "serves": self._contestant.serves,
            "facts": self._contestant.facts,
            "seconds": time.perf_counter() - started,
            "imports_mib": imports,
            "loaded_mib": resident("VmRSS"),
        }

    def variants(self, work: dict[str, Any]) -> dict[str, Any]:
        """Ways to run a case, the plain one first."""
        return {"variants": list(self._contestant.variants(work))}

    def run(self, variant: str, work: dict[str, Any]) -> dict[str, Any]:
        """Run a case once, clocked: wall seconds, CPU seconds of the process, the tokens or times, memory."""
        longest = max(len(prompt) + new for prompt, new in zip(work["prompts"], work["new_tokens"], strict=True))
        shape = f"{work['name']} {len(work['prompts'])} {longest}"
        if self._prepared != (variant, shape):
            self._contestant.prepare(variant, work)
            self._prepared = (variant, shape)
        gc.collect()
        forget_peak()
        busy, wall, cpu = busy_seconds(), time.perf_counter(), time.process_time()
        found: dict[str, Any] = serve(self._contestant, work) if work["arrivals"] else {"tokens": self._contestant.generate(work)}
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        others = max(0.0, busy_seconds() - busy - cpu) / (wall * (os.cpu_count() or 1))
        extra = self._contestant.measured() if hasattr(self._contestant, "measured") else {}
        return {"wall": wall, "cpu": cpu, "others": others, "peak_mib": resident("VmHWM"), **extra, **found}


def main() -> None:
    """Answer commands until the input ends. What a library prints goes to the log, standard error, and not between the answers."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        command = json.loads(line)
        try:
            result = getattr(worker, command.pop("do"))(**command)
        except BaseException as error:
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)
            raise
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
