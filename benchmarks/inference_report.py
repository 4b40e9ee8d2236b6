"""What ``inference.py`` found: the result file, which grows case by case, the tables, and each bar as met or missed.

Exercise it: ``python benchmarks/inference.py --quick``.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import support
from inference_pool import OURS
from rich.console import Console
from rich.table import Table

from ms4_train.storage import atomic_write_text

BEST_PEER_BAR, BATCH_1_BAR = 1.3, 2.0
"""Issue 6: batch 8 and 32 against the best peer; batch 1 against transformers and vLLM. llama.cpp at batch 1 is reported."""


class ResultFile:
    """The JSON result; a case that is run again replaces what was found before, all others stay.

    Args:
        path: of the file; None writes none.
        command: that is running.
        threads: of every contestant.
    """

    def __init__(self, path: Path | None, command: str, threads: int) -> None:
        self._path = path
        self._stamp = {"command": command, "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "threads": threads}
        self.content: dict[str, Any] = {"program": "inference", "machine": {}, "models": {}, "cases": {}}
        if path is not None and path.exists():
            self.content |= json.loads(path.read_text(encoding="utf-8"))
        self.content["machine"] = {"cpu": support.cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()}

    def add_contestants(self, model: str, about: dict[str, Any]) -> None:
        """What the contestants said of themselves."""
        self.content["models"].setdefault(model, {}).update(about)

    def add_case(self, name: str, result: dict[str, Any]) -> None:
        """Add what was found in a case, with its summary, and write the file."""
        if "contestants" in result:
            result = result | {"summary": summary(result)}
            result["verdicts"] = verdicts(name, result)
        self.content["cases"][name] = self._stamp | result
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(self._path, json.dumps(self.content, indent=1) + "\n")


def summary(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Of each contestant: medians, and its time over ours (median, least and most over rounds, which are neighbours in time)."""
    ours = result["contestants"].get(OURS)
    found = {}
    for name, runs in result["contestants"].items():
        rates = [new / wall for new, wall in zip(runs["new_tokens"], runs["wall"], strict=True)]
        row = {
            "wall_seconds": statistics.median(runs["wall"]),
            "cpu_seconds": statistics.median(runs["cpu"]),
            "new_tokens_per_second": statistics.median(rates),
            "peak_mib": max(runs["peak_mib"]),
        }
        for clock in ("wall", "cpu"):
            own = dict(zip(ours["round"], ours[clock], strict=True)) if ours else {}
            ratios = [theirs / own[number] for number, theirs in zip(runs["round"], runs[clock], strict=True) if number in own]
            if ratios:
                row |= {
                    f"{clock}_times_ours": statistics.median(ratios),
                    f"{clock}_times_ours_min": min(ratios),
                    f"{clock}_times_ours_max": max(ratios),
                }
        if "first" in runs:
            first, last = (sorted(seconds for run in runs[key] for seconds in run) for key in ("first", "last"))
            row |= {
                "first_token_median": statistics.median(first),
                "first_token_p90": first[int(0.9 * len(first))],
                "first_token_max": first[-1],
            }
            row |= {"whole_answer_median": statistics.median(last), "whole_answer_p90": last[int(0.9 * len(last))]}
        found[name] = row
    return found


def verdicts(name: str, result: dict[str, Any]) -> list[str]:
    """Each bar of a case as met or missed."""
    peers = {peer: row["wall_times_ours"] for peer, row in result["summary"].items() if peer != OURS and "wall_times_ours" in row}
    if result["kind"] != "batch" or not peers:
        return []
    if name.endswith("/batch-1"):
        bars = {peer: BATCH_1_BAR for peer in peers if peer != "llama.cpp"}
    else:
        bars = {min(peers, key=lambda peer: peers[peer]): BEST_PEER_BAR}
    lines = [
        f"bar {'met' if peers[peer] >= bar else 'MISSED'}: {peers[peer]:.2f} times as fast as {peer}, at least {bar:g} asked"
        for peer, bar in bars.items()
    ]
    return lines + [f"reported: {times:.2f} times as fast as {peer}" for peer, times in peers.items() if peer not in bars]


def print_results(cases: dict[str, Any], names: Iterable[str]) -> None:
    """The tables, and what was checked."""
    found = {name: cases[name] for name in names if name in cases}
    throughput = Table(title="wall seconds, medians; time / ours above 1: ours is faster")
    for heading in (
        "case",
        "program",
        "wall s",
        "CPU s",
        "new tokens/s",
        "time / ours (min - max)",
        "CPU / ours",
        "same answers",
        "peak MiB",
    ):
        throughput.add_column(heading, justify="left" if heading in ("case", "program") else "right")
    waiting = Table(title="requests that come one by one: seconds from arrival")
    for heading in ("case", "program", "first token, median", "p90", "most", "whole answer, median", "p90"):
        waiting.add_column(heading, justify="left" if heading in ("case", "program") else "right")
    for name, result in found.items():
        for index, (contestant, row) in enumerate(result.get("summary", {}).items()):
            head = (name if index == 0 else "", contestant)
            if "first_token_median" in row:
                keys = ("first_token_median", "first_token_p90", "first_token_max", "whole_answer_median", "whole_answer_p90")
                waiting.add_row(*head, *(f"{row[key]:.3f}" for key in keys))
            else:
                throughput.add_row(*head, *_cells(contestant, row, result["contestants"][contestant]))
        (throughput if result.get("kind") != "arrivals" else waiting).add_section()
    console = Console(width=150)
    for table in (throughput, waiting):
        if table.row_count:
            console.print(table)
    for name, result in found.items():
        if "contestants" in result:
            ways = ", ".join(f"{contestant} {runs['variant']}" for contestant, runs in result["contestants"].items())
            console.print(f"{name}: {result['what']}; {ways}", soft_wrap=True)
        for line in result.get("verdicts", []):
            console.print(f"    {line}", soft_wrap=True)


def _cells(name: str, row: dict[str, float], runs: dict[str, Any]) -> tuple[str, ...]:
    span, cpu = "", ""
    if name != OURS and "wall_times_ours" in row:
        span = f"{row['wall_times_ours']:.2f} ({row['wall_times_ours_min']:.2f} - {row['wall_times_ours_max']:.2f})"
        cpu = f"{row['cpu_times_ours']:.2f}"
    same = f"{sum(runs['identical'])} of {sum(runs['answers'])}" if "identical" in runs else ""
    rate = f"{row['new_tokens_per_second']:.0f}"
    return f"{row['wall_seconds']:.3f}", f"{row['cpu_seconds']:.3f}", rate, span, cpu, same, f"{row['peak_mib']:.0f}"
