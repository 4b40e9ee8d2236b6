"""Whole optimizer steps of ours against transformers + PEFT: tokens per second, peak memory, and the share of the bare products' time.

Both train the same weights on the same documents, fp32, two threads, every token with a target: forward, loss, backward, clip to norm 1,
AdamW. Ours is the model, loss and engine that ``ms4 train`` uses. The peer is transformers' ``Mistral4ForCausalLM`` with whichever of its
experts implementations is fastest here, PEFT's LoRA on the same modules and stacks, and torch's fused AdamW. Before a case is timed, losses
and clipped gradients of the first step must agree. Then steps alternate, A B, B A, and every ratio is one of neighbours in time.

    python benchmarks/train_step.py                    # all cases
    python benchmarks/train_step.py --quick            # the two headline cases, few rounds, nothing written
    python benchmarks/train_step.py --profile lora     # where our step spends its time
    python benchmarks/train_step.py --cases lora full  # these only
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import support
import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor
from train_step_contestants import CASES, Contestant, Work, base_model, build_ours, build_peer, equalise_adapters, without_near_ties
from train_step_floor import bare_products
from train_step_memory import measure

from ms4_train.storage import atomic_write_text

OURS, PEER, FLOOR = "ours", "transformers + PEFT", "bare products"
HEADLINES = ("lora", "full")
SPEED_BARS = {"lora": 2.0, "full": 1.5}
MEMORY_BARS = {"lora": 0.6}
LOSS_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Nats. fp32 sums in another order differ by some 1e-6. bf16 keeps 8 bits, steps of 1/32 in a logit near 8, and the two round in different
places; measured 5e-4 to 1e-2."""
GRADIENT_TOLERANCE = 1e-3
"""Worst relative error of a parameter's gradient, fp32: rounding gives some 4e-6, one token of 2048 with another expert up to 1e-3."""
ROUNDING_EXCESS = 1.5
"""bf16 sends many tokens whose experts nearly tie elsewhere, in each program others, so gradients are compared with those of the peer in
fp32 on the same weights: ours may be off by this much more than the peer's own bf16 gradients. Above 1, as flips are a matter of luck."""
NEAR_TIE = 1e-5
"""Router logits; fp32 sums in another order move them by some 1e-6."""
SMALL = (128, 128)
"""Documents on which all experts implementations of the peer are tried: ``batched_mm`` copies two matrices per token and expert."""


@dataclass
class Result:
    """A case's measurements. ``wall`` and ``cpu``: contestant -> seconds of each step; entry i of all belongs to one round."""

    work: Work
    checked: str
    facts: dict[str, Any]
    wall: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Medians, tokens per second, and the peer's time over ours: ratio of medians, least and most over pairs."""
        rows: dict[str, Any] = {}
        for name in self.wall:
            rows[name] = {
                "wall_seconds": statistics.median(self.wall[name]),
                "cpu_seconds": statistics.median(self.cpu[name]),
                "tokens_per_second": self.work.num_tokens / statistics.median(self.wall[name]),
            }
        for kind, seconds in (("wall", self.wall), ("cpu", self.cpu)):
            pairs = [peer / ours for peer, ours in zip(seconds[PEER], seconds[OURS], strict=True)]
            ratio = statistics.median(seconds[PEER]) / statistics.median(seconds[OURS])
            rows[f"{kind}_speedup"] = {"of_medians": ratio, "min": min(pairs), "max": max(pairs)}
        if FLOOR in self.wall:
            rows["share_of_floor"] = rows[FLOOR]["wall_seconds"] / rows[OURS]["wall_seconds"]
        return rows


def check(work: Work, ours: Contestant, peer: Contestant, experts: str) -> str:
    """Take one step of each and compare losses and clipped gradients; stops the program where they differ.

    Raises:
        SystemExit: not the same computation.
    """
    exact = None if work.dtype == torch.float32 else fp32_gradients(work, peer, experts)
    losses = float(ours.step()), float(peer.step())
    mine, theirs = ours.first_moments(), peer.first_moments()
    if set(mine) != set(theirs):
        raise SystemExit(f"{work.name}: different parameters are trained: {sorted(set(mine) ^ set(theirs))[:6]}")
    tolerance = LOSS_TOLERANCE[work.dtype]
    if abs(losses[0] - losses[1]) > tolerance:
        raise SystemExit(f"{work.name}: not the same computation: losses {losses}, tolerance {tolerance:g}")
    said = f"loss {losses[0]:.4f}, differs by {abs(losses[0] - losses[1]):.1e} (tolerance {tolerance:g}); {len(mine)} clipped gradients, "
    if exact is not None:
        errors = relative_error(mine, exact), relative_error(theirs, exact)
        if errors[0] > ROUNDING_EXCESS * errors[1]:
            raise SystemExit(f"{work.name}: gradients are off from fp32 by {errors[0]:.1e}, the peer's by {errors[1]:.1e}")
        return f"{said}off from fp32 by {errors[0]:.1e} of their norm, the peer's by {errors[1]:.1e}"
    each = {name: relative_error({name: mine[name]}, {name: theirs[name]}) for name in mine}
    worst = max(each, key=lambda name: each[name])
    if each[worst] > GRADIENT_TOLERANCE:
        raise SystemExit(f"{work.name}: not the same computation: the gradient of {worst} differs by {each[worst]:.1e}")
    return f"{said}worst relative difference {each[worst]:.1e} (tolerance {GRADIENT_TOLERANCE:g})"


def fp32_gradients(work: Work, peer: Contestant, experts: str) -> dict[str, Tensor]:
    """First moments of the peer in fp32 after one step from the same weights."""
    wide = build_peer(dataclasses.replace(work, dtype=torch.float32), experts)
    narrow = dict(peer.model.named_parameters())
    with torch.no_grad():
        for name, parameter in wide.model.named_parameters():
            parameter.copy_(narrow[name])
    wide.step()
    return wide.first_moments()


def relative_error(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Norm of the difference over the norm of the second, all tensors together."""
    difference = sum(float((mine[name].double() - theirs[name].double()).square().sum()) for name in theirs)
    return math.sqrt(difference / sum(float(value.double().square().sum()) for value in theirs.values()))


def fastest_implementation(work: Work) -> tuple[str, dict[str, Any]]:
    """The peer's experts implementation with the fastest forward and backward, and what was measured.

    All are tried on a few short documents; those that could win at the case's own size are tried there too.
    """
    small = Work(work.name, work.mode, SMALL, work.num_experts, work.dtype)
    few = _implementation_seconds(small, ("grouped_mm", "eager", "batched_mm"))
    many = _implementation_seconds(work, ("grouped_mm",))
    # More tokens take no less time, so what is slower on a few than grouped_mm on all of them is out.
    left = tuple(name for name in ("eager", "batched_mm") if few[name] < many["grouped_mm"])
    many |= _implementation_seconds(work, left) if left else {}
    return min(many, key=lambda name: many[name]), {"peer_seconds_256_tokens": few, "peer_seconds_full_size": many}


def _implementation_seconds(work: Work, names: tuple[str, ...]) -> dict[str, float]:
    peer = build_peer(work, names[0])
    seconds: dict[str, float] = {}
    for name in names:
        base_model(peer.model).set_experts_implementation(name)
        for _ in range(2):
            started = time.perf_counter()
            peer.backward()
            elapsed = time.perf_counter() - started
            peer.model.zero_grad(set_to_none=True)
            seconds[name] = min(elapsed, seconds.get(name, elapsed))
            if elapsed > 3 * min(seconds.values()):
                break  # the first pass warms up, but not by so much
    return seconds


def time_rounds(contestants: Mapping[str, Callable[[], object]], result: Result, rounds: int) -> None:
    """``rounds`` steps of each, alternating, after one of each that does not count."""
    for run in contestants.values():
        run()
    for index in range(rounds):
        names = list(contestants)
        for name in names if index % 2 == 0 else reversed(names):
            wall, cpu = time.perf_counter(), time.process_time()
            contestants[name]()
            result.cpu.setdefault(name, []).append(time.process_time() - cpu)
            result.wall.setdefault(name, []).append(time.perf_counter() - wall)


def compare(work: Work, rounds: int, *, experts: str | None, memory: bool) -> Result:
    """Choose the peer's implementation unless it is given, check, and time one case."""
    if work.dtype == torch.float32:  # in bf16 near ties are everywhere, and the check takes another way
        work = without_near_ties(work, NEAR_TIE)
    experts, facts = (experts, {}) if experts else fastest_implementation(work)
    ours, peer = build_ours(work), build_peer(work, experts)
    if work.mode == "lora":
        equalise_adapters(ours.model, peer.model)
    facts |= {"peer": support.implementations(base_model(peer.model)), "lengths": list(work.lengths), "mode": work.mode, "seed": work.seed}
    result = Result(work, check(work, ours, peer, experts), facts)
    contestants: dict[str, Callable[[], object]] = {OURS: ours.step, PEER: peer.step}
    if work.dtype == torch.float32:  # torch's bf16 products are no floor on a CPU without matrix units: widening to fp32 is faster
        contestants[FLOOR], facts["gflop"] = bare_products(work, ours.model)
    time_rounds(contestants, result, rounds)
    del ours, peer, contestants
    if memory:
        result.memory = peak_memory(work, experts)
    return result


def peak_memory(work: Work, experts: str) -> dict[str, Any]:
    """Peaks of both in processes of their own, and ours over the peer's: of the whole process, and of its increase over the imports."""
    found: dict[str, Any] = {}
    for kind, trimmed in (("trimmed", True), ("default", False)):
        ours = measure("ours", work.name, trimmed=trimmed, threads=torch.get_num_threads())
        peer = measure("peer", work.name, experts, trimmed=trimmed, threads=torch.get_num_threads())
        ratios = {f"{key}_ratio": ours[key] / peer[key] for key in ("step_peak", "step_increase")}
        found[kind] = {OURS: ours, PEER: peer, **ratios}
    return found


def print_results(results: list[Result]) -> None:
    """The table."""
    table = Table(title="training step: wall and CPU seconds, medians")
    for heading in ("case", "program", "wall s", "CPU s", "tokens/s", "speed-up (wall, min - max)", "speed-up (CPU)"):
        table.add_column(heading, justify="left" if heading in ("case", "program") else "right")
    for result in results:
        summary = result.summary()
        for index, name in enumerate(result.wall):
            row = summary[name]
            ratio, ratio_cpu = summary["wall_speedup"], summary["cpu_speedup"]
            speedups = (f"{ratio['of_medians']:.2f} ({ratio['min']:.2f} - {ratio['max']:.2f})", f"{ratio_cpu['of_medians']:.2f}")
            cells = (f"{row['wall_seconds']:.3f}", f"{row['cpu_seconds']:.3f}", f"{row['tokens_per_second']:.0f}")
            table.add_row(result.work.name if index == 0 else "", name, *cells, *(speedups if name == OURS else ("", "")))
        table.add_section()
    Console(width=130).print(table)
    for result in results:
        print(f"{result.work.name}: {result.facts['peer']}; checked first: {result.checked}")
        for line in verdicts(result):
            print(f"    {line}")


def verdicts(result: Result) -> list[str]:
    """What was measured beside the times, and each bar of a headline case as met or missed."""
    summary, work = result.summary(), result.work
    lines = []
    if FLOOR in result.wall:
        rate = result.facts["gflop"] / summary[FLOOR]["wall_seconds"]
        share, gflop = summary["share_of_floor"], result.facts["gflop"]
        lines.append(f"bare torch products take {share:.0%} of our step's time ({gflop:.0f} GFLOP at {rate:.0f} GFLOP/s)")
    for kind, found in result.memory.items():
        ours, peer = found[OURS], found[PEER]
        lines.append(
            f"peak memory, glibc {kind}: "
            f"process {ours['step_peak']:.0f} against {peer['step_peak']:.0f} MiB, {found['step_peak_ratio']:.2f}x; "
            f"above imports {ours['step_increase']:.0f} against {peer['step_increase']:.0f} MiB, {found['step_increase_ratio']:.2f}x"
        )
    if work.name in HEADLINES:
        bar, speedup = SPEED_BARS[work.mode], summary["wall_speedup"]["of_medians"]
        lines.append(f"bar {'met' if speedup >= bar else 'MISSED'}: {speedup:.2f}x tokens/s, at least {bar:g}x asked")
        if result.memory and work.mode in MEMORY_BARS:
            bar = MEMORY_BARS[work.mode]
            for key, words in (("step_peak_ratio", "of the process"), ("step_increase_ratio", "above imports")):
                ratio = result.memory["trimmed"][key]
                lines.append(f"bar {'met' if ratio <= bar else 'MISSED'}: {ratio:.2f}x peak memory {words}, at most {bar:g}x asked")
    return lines


def write_results(results: list[Result], out: Path, command: str) -> None:
    """The JSON result, with what it was measured on."""
    content = {
        "program": "train_step",
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {"cpu": support.cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
        "cases": [
            {
                "name": result.work.name,
                "tokens": result.work.num_tokens,
                "checked": result.checked,
                **result.facts,
                "verdicts": verdicts(result),
                "summary": result.summary(),
                "memory_mib": result.memory,
                "wall_seconds": result.wall,
                "cpu_seconds": result.cpu,
            }
            for result in results
        ],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(out, json.dumps(content, indent=1) + "\n")


def profile(work: Work) -> None:
    """Print the operations in which our step spends most CPU time."""
    ours = build_ours(work)
    ours.step()
    ours.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        for _ in range(3):
            ours.step()
    print(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=50))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="timed steps of each contestant (default 9, quick 3)")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), help="default: all; quick: lora and full")
    parser.add_argument("--quick", action="store_true", help="headline cases, few rounds, no result file unless --out names one")
    parser.add_argument("--experts", help="the peer's experts implementation (default: the fastest measured; quick: grouped_mm)")
    parser.add_argument("--memory", action="store_true", help="measure peak memory with --quick too")
    parser.add_argument("--profile", choices=list(CASES), help="profile our step of one case and stop")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON result (default benchmarks/results/train_step.json)")
    return parser.parse_args()


def main() -> None:
    """Runs the cases."""
    options = arguments()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    if options.profile:
        profile(CASES[options.profile])
        return
    names = options.cases or (HEADLINES if options.quick else list(CASES))
    rounds = options.rounds or (3 if options.quick else 9)
    memory = options.memory or not options.quick
    experts = options.experts or ("grouped_mm" if options.quick else None)
    results = [compare(CASES[name], rounds, experts=experts, memory=memory) for name in names]
    print_results(results)
    out = options.out or (None if options.quick else support.RESULTS / "train_step.json")
    if out is not None:
        write_results(results, out, " ".join(["python benchmarks/train_step.py", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
