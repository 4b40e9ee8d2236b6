"""One, two and four ranks: ours with expert parallelism against transformers under DeepSpeed's ZeRO 3 and under its AutoEP.

Every contestant trains all parameters of the same model, from the same weights, on the same documents with the same AdamW and clipping,
fp32; for the others it is transformers' ``Mistral4ForCausalLM``. The work of a step is the same on any number of ranks, which share out
its documents. Each rank is a process of its own with one thread, bound to a core of its own as far as there are any; the ranks of a
contestant have a network of their own, whose device counts what crosses it. Losses and gradient norms of the first steps must agree with
those of our single rank before anything is timed, and are watched throughout. Then all contestants on one and two ranks take one step
each, round by round, in turns of changing order, so every ratio is one of neighbours in time. On four ranks bytes and memory are taken
and no times, since there may be fewer cores. Ours on one rank is a plain optimizer; everybody else's ZeRO has nobody to share with there.

AutoEP does not know this architecture; it is told what the blocks are called. Where its losses deviate it is counted apart.

    python benchmarks/scaling.py           # everything, some minutes; nothing else should run meanwhile
    python benchmarks/scaling.py --quick   # smaller work, two rounds, nothing written: that it runs, not how fast
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import importlib.metadata
import json
import os
import platform
import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import support
from rich.console import Console
from rich.table import Table
from scaling_contestants import AUTO_EP, OURS, PEER, Work
from scaling_network import Group

from ms4_train.storage import atomic_write_text

OUR_ONE = next(iter(OURS))
CONTESTANTS = {1: (OUR_ONE, PEER), 2: (*OURS, PEER, AUTO_EP), 4: (OUR_ONE, PEER, AUTO_EP)}
TIMED_RANKS = (1, 2)
QUICK = Work(hidden_size=128, expert_width=64, num_experts=32, vocab_size=1024, length=256)
"""What a step costs in any case weighs more here than the work."""
CHECKED_STEPS = 3
TOLERANCE = {"before timing": 1e-4, "all steps": 1e-2}
"""Relative, of losses and norms. Sums in another order differ by some 1e-6. Where two experts of a token nearly tie, they decide; each such
token moves the norm by 1e-4 or so, and there are some among the tokens of many steps."""


@dataclass
class Series:
    """What a contestant did on a number of ranks: one entry per step in each list.

    Attributes:
        losses: mean over all tokens.
        norms: of all gradients.
        wall: seconds of the slowest rank; only of timed steps.
        cpu: CPU seconds of all ranks together; only of timed steps.
        sent: bytes that crossed the network.
        counted: bytes that our exchange counted as sent.
        memory: of the heaviest rank: ``held_experts``, ``held_all``, bytes; ``peak_mib`` during steps, ``imports_mib`` before anything.
        own_network: whether nobody else's bytes can be among those sent.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    counted: list[int] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)
    own_network: bool = True

    def take(self, group: Group, *, timed: bool) -> None:
        """One step of the group."""
        replies, sent = group.ask("step")
        self.losses.append(statistics.fmean(reply["loss"] for reply in replies))
        self.norms.append(replies[0]["norm"])
        self.sent.append(sent)
        self.counted.append(sum(reply["counted"] for reply in replies))
        if timed:
            self.wall.append(max(reply["wall"] for reply in replies))
            self.cpu.append(sum(reply["cpu"] for reply in replies))

    def look_at_memory(self, group: Group) -> None:
        """What is held, and the peak since ``settle``."""
        replies, _ = group.ask("memory")
        self.memory |= {
            "held_experts": max(reply["held"]["experts"] for reply in replies),
            "held_all": max(reply["held"]["all"] for reply in replies),
            "peak_mib": max(reply["peak_mib"] for reply in replies),
        }

    def apart_from(self, expected: Series, steps: int | None = None) -> float:
        """Largest relative difference of losses and norms, over the first ``steps`` steps, or all that both have taken."""
        pairs = [*zip(self.losses[:steps], expected.losses, strict=False), *zip(self.norms[:steps], expected.norms, strict=False)]
        return max(abs(own - other) / other for own, other in pairs)

    def deviates(self, expected: Series) -> str | None:
        """What is too far from the expected, in words; None where nothing is."""
        for (when, allowed), steps in zip(TOLERANCE.items(), (CHECKED_STEPS, None), strict=True):
            apart = self.apart_from(expected, steps)
            if apart > allowed:
                return f"losses or norms differ by {apart:.1e}, {when}; {allowed:g} is allowed"
        return None


Found = dict[tuple[str, int], Series]


def started(name: str, ranks: int, work: Work, series: Series) -> Group:
    """A group that is built and has taken the steps that are compared."""
    group = Group(name, ranks, [name, json.dumps(asdict(work))])
    try:
        replies, _ = group.ask("build")
        series.memory["imports_mib"] = max(reply["imports_mib"] for reply in replies)
        group.ask("settle")
        for _ in range(CHECKED_STEPS):
            series.take(group, timed=False)
    except BaseException:
        group.close()
        raise
    series.own_network = group.own_network
    return group


def check(found: Found) -> None:
    """Stop where a contestant computes something else.

    Raises:
        SystemExit: names it. AutoEP may deviate; the report says so.
    """
    for (name, ranks), series in found.items():
        wrong = series.deviates(found[OUR_ONE, 1])
        if wrong is not None and name != AUTO_EP:
            raise SystemExit(f"{name} on {ranks} ranks does not compute what {OUR_ONE} does on one: {wrong}")


def measure(work: Work, rounds: int) -> Found:
    """Everything: check, time, count."""
    found: Found = {}
    groups: dict[tuple[str, int], Group] = {}
    try:
        for ranks in TIMED_RANKS:
            for name in CONTESTANTS[ranks]:
                found[name, ranks] = Series()
                groups[name, ranks] = started(name, ranks, work, found[name, ranks])
        check(found)
        for index in range(rounds):
            for key in list(groups) if index % 2 == 0 else reversed(list(groups)):
                found[key].take(groups[key], timed=True)
        for key, group in groups.items():
            found[key].look_at_memory(group)
    finally:
        for group in groups.values():
            group.close()
    for name in CONTESTANTS[4]:
        series = found[name, 4] = Series()
        group = started(name, 4, work, series)
        series.look_at_memory(group)
        group.close()
    check(found)
    return found


def summary(found: Found, name: str, ranks: int) -> dict[str, Any]:
    """The numbers of one row; ratios are the contestant's over ours on as many ranks, median, least and most over rounds."""
    series, ours = found[name, ranks], found[OUR_ONE, ranks]
    apart = functools.partial(series.apart_from, found[OUR_ONE, 1])
    row: dict[str, Any] = {
        "bytes_sent": statistics.median(series.sent[1:]),  # the first step may exchange what later ones do not
        "bytes_counted_by_exchange": series.counted[-1],
        "apart_from_one_rank": {"before timing": apart(CHECKED_STEPS), "all steps": apart(None)},
        **series.memory,
    }
    if series.wall:
        row |= {"wall_seconds": statistics.median(series.wall), "cpu_seconds": statistics.median(series.cpu)}
        for kind in ("wall", "cpu"):
            pairs = [other / own for other, own in zip(getattr(series, kind), getattr(ours, kind), strict=True)]
            row[f"{kind}_times_ours"] = {"median": statistics.median(pairs), "min": min(pairs), "max": max(pairs)}
    return row


def verdicts(found: Found) -> list[str]:
    """Each thing that was asked for, as met or missed, and what else is worth saying."""
    lines = []
    for ranks in (2, 4):
        ours = summary(found, OUR_ONE, ranks)
        for name in (PEER, AUTO_EP):
            other = summary(found, name, ranks)
            wrong = found[name, ranks].deviates(found[OUR_ONE, 1])
            if wrong is not None:
                lines.append(f"{name} on {ranks} ranks is counted apart: {wrong}")
                continue
            fewer = other["bytes_sent"] / ours["bytes_sent"]
            lines.append(f"bytes, {ranks} ranks: {_bar(fewer > 1)}: {name} sends {fewer:.2f}x ours")
            if "wall_times_ours" in other:
                slower = other["wall_times_ours"]["median"]
                lines.append(f"time, {ranks} ranks: {_bar(slower > 1)}: {name} takes {slower:.2f}x ours")
        whole = found[OUR_ONE, 1].memory["held_experts"]
        share = ours["held_experts"] / whole
        lines.append(f"memory of experts, {ranks} ranks: {_bar(share == 1 / ranks)}: a rank holds {share:.4f} of them")
        dense = ours["bytes_sent"] - ours["bytes_counted_by_exchange"]
        lines.append(f"{OUR_ONE} on {ranks} ranks: {dense / 1e6:.1f} MB of what it sends is not the exchange's: gradients and weights")
    for name in OURS:
        if name != OUR_ONE:
            row, ours = summary(found, name, 2), summary(found, OUR_ONE, 2)
            times, fewer = row["wall_times_ours"]["median"], row["bytes_sent"] / ours["bytes_sent"]
            lines.append(f"{name} on 2 ranks takes {times:.2f}x the time of {OUR_ONE} and sends {fewer:.2f}x the bytes")
    speedup = [one / two for one, two in zip(found[OUR_ONE, 1].wall, found[OUR_ONE, 2].wall, strict=True)]
    lines.append(f"{OUR_ONE}: two ranks are {statistics.median(speedup):.2f}x as fast as one, at the same work")
    if not all(series.own_network for series in found.values()):
        lines.append("no network of its own could be had: bytes are those of the whole machine's loopback device")
    return lines


def _bar(met: bool) -> str:
    return "bar met" if met else "bar MISSED"


def print_results(found: Found, work: Work) -> None:
    """The table."""
    table = Table(title=f"a training step on {work.num_tokens} tokens: medians; times / ours above 1: ours is faster")
    headings = (
        "ranks",
        "program",
        "wall s",
        "CPU s",
        "wall / ours (min - max)",
        "MB sent",
        "experts MB/rank",
        "all MB/rank",
        "peak MiB/rank",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "program" else "right")
    for ranks, names in CONTESTANTS.items():
        for name in names:
            row = summary(found, name, ranks)
            times = ("", "", "")
            if "wall_seconds" in row:
                ratio = row["wall_times_ours"]
                span = "" if name == OUR_ONE else f"{ratio['median']:.2f} ({ratio['min']:.2f} - {ratio['max']:.2f})"
                times = (f"{row['wall_seconds']:.3f}", f"{row['cpu_seconds']:.3f}", span)
            sizes = [f"{row[key] / 1e6:.1f}" for key in ("bytes_sent", "held_experts", "held_all")]
            table.add_row(str(ranks), name, *times, *sizes, f"{row['peak_mib']:.0f}", end_section=name == names[-1])
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    for line in verdicts(found):
        print(line)
    for when, steps in zip(TOLERANCE, (CHECKED_STEPS, None), strict=True):
        worst = {name == AUTO_EP: 0.0 for name, _ in found}
        for (name, _), series in found.items():
            worst[name == AUTO_EP] = max(worst[name == AUTO_EP], series.apart_from(found[OUR_ONE, 1], steps))
        print(f"losses and norms, {when}: at most {worst[False]:.1e} from those of our one rank; of AutoEP {worst[True]:.1e}")


def write_results(found: Found, work: Work, out: Path, command: str) -> None:
    """The JSON result, with what it was measured on."""
    content = {
        "program": "scaling",
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {"cpu": support.cpu_name(), "cores": os.cpu_count(), "threads_per_rank": 1},
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "deepspeed")},
        },
        "work": {**asdict(work), "tokens": work.num_tokens, "experts_per_token": 4, "dtype": "float32"},
        "checked_steps": CHECKED_STEPS,
        "tolerance": TOLERANCE,
        "verdicts": verdicts(found),
        "rows": [
            {"ranks": ranks, "program": name, "summary": summary(found, name, ranks), "steps": asdict(series)}
            for (name, ranks), series in found.items()
        ],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(out, json.dumps(content, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="timed steps of each contestant (default 9, quick 2)")
    parser.add_argument("--experts", type=int, help="experts of each layer (default 128, quick 32)")
    parser.add_argument("--quick", action="store_true", help="small work, few rounds, no result file unless --out names one")
    parser.add_argument("--out", type=Path, help="JSON result (default benchmarks/results/scaling.json)")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    options = arguments()
    work = QUICK if options.quick else Work()
    work = dataclasses.replace(work, num_experts=options.experts or work.num_experts)
    found = measure(work, options.rounds or (2 if options.quick else 9))
    print_results(found, work)
    out = options.out or (None if options.quick else support.RESULTS / "scaling.json")
    if out is not None:
        write_results(found, work, out, " ".join(["python benchmarks/scaling.py", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
