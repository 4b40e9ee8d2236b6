"""Inference on a CPU, ours against transformers, vLLM and llama.cpp: the same fp32 weights and prompts, two threads, a process for each.

Every contestant runs inside one process that stays alive: transformers' ``generate`` with its fastest experts, vLLM's CPU wheel compiled,
llama.cpp's library under a loop of continuous batching, our engine. Of several ways to run a contestant the one that is fastest in a
case takes part in it. Before a case is timed greedy tokens are compared (``inference_check.py``), and again in every round. Rounds
alternate, A B C D, D C B A, with new prompts each, and every ratio is one of neighbours in time. A round during which other processes
used the machine is measured again. vLLM and llama.cpp live in ``.venv-peers`` (``make peers``).

    python benchmarks/inference.py                                      # all cases
    python benchmarks/inference.py --quick                              # one case, one round, nothing written
    python benchmarks/inference.py --cases 'tiny16/*' --rounds 3        # these only; other cases of the result file stay as they are
    python benchmarks/inference.py --peers llama.cpp --cases '*/batch-1'
    python benchmarks/inference.py --profile tiny128/batch-32           # where our time goes
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import inference_context
import inference_report as report
import support
from inference_cases import CASES, QUICK, Case, write_model
from inference_check import Judge
from inference_pool import NAMES, OURS, Process, absent
from inference_worker import busy_seconds

SLOW_SECONDS, SLOW_ROUNDS = 15, 2
"""A contestant whose fastest run takes longer takes part in so many rounds only."""
DISTURBED = 0.05
"""Share of the machine that others may use during a run; else its round is measured again, and the least disturbed rounds count."""
MOST_TRIES = 3
"""Rounds that are measured for each one that counts, at most."""
GREEDY = ("batch", "uneven")
CONTEXT = "context"


def calibrate(contestant: Process, case: Case) -> tuple[dict[str, list[list[int]]], dict[str, float]]:
    """Answers of each variant to the prompts of run 0, and wall seconds of each: the shortest of three runs, of one where it is slow."""
    answers, seconds = {}, {}
    works = [case.work(run).to_dict() for run in (0, 1, 2)]
    for variant in contestant.ask("variants", work=works[0])["variants"]:
        run = contestant.ask("run", variant=variant, work=works[0])
        answers[variant], seconds[variant] = run.get("tokens", []), run["wall"]
        if run["wall"] < min(SLOW_SECONDS, 3 * min(seconds.values())):
            warm = [contestant.ask("run", variant=variant, work=work)["wall"] for work in works[1:]]
            seconds[variant] = min(run["wall"], *warm)
    return answers, seconds


def choose(case: Case, contestants: list[Process], judge: Judge) -> dict[str, dict[str, Any]]:
    """Compare the answers of each variant with ours, and choose each contestant's fastest one of those that answer alike."""
    found: dict[str, dict[str, Any]] = {}
    ours: list[list[int]] = []
    for contestant in contestants:
        answers, seconds = calibrate(contestant, case)
        about: dict[str, Any] = {"variant_seconds": seconds}
        if case.kind in GREEDY:
            ours = ours or next(iter(answers.values()))
            agreements = {variant: judge.compare(case.work(0).prompts, ours, tokens) for variant, tokens in answers.items()}
            about["checked"] = {variant: str(agreement) for variant, agreement in agreements.items()}
            seconds = {variant: seconds[variant] for variant, agreement in agreements.items() if agreement.alike}
            if not seconds:
                raise SystemExit(f"{case.name}: {contestant.name} does not answer as ours does: {about['checked']}")
        elif case.kind == "arrivals":  # their times say when the last request came
            seconds = dict.fromkeys(list(seconds)[:1], 0.0)
        about["variant"] = min(seconds, key=lambda variant: seconds[variant])
        about["fastest"] = seconds[about["variant"]]
        found[contestant.name] = about
    return found


def compare(case: Case, contestants: list[Process], judge: Judge, rounds: int) -> dict[str, Any]:
    """Check and time one case; what the result file says of it."""
    found = choose(case, contestants, judge)
    measured: list[dict[str, dict[str, Any]]] = []
    while len(measured) < MOST_TRIES * rounds and sum(disturbance(runs) <= DISTURBED for runs in measured) < rounds:
        number = len(measured)
        all_join = sum(disturbance(runs) <= DISTURBED for runs in whole_rounds(measured)) < SLOW_ROUNDS
        quick = [each for each in contestants if all_join or found[each.name]["fastest"] <= SLOW_SECONDS]
        work = case.work(3 + number)
        order = quick if number % 2 == 0 else quick[::-1]
        wait_for_quiet()
        runs = {each.name: each.ask("run", variant=found[each.name]["variant"], work=work.to_dict()) for each in order}
        own = runs[OURS].get("tokens", [])
        for name, run in runs.items():
            found[name]["fastest"] = min(found[name]["fastest"], run["wall"])
            tokens = run.pop("tokens", [])
            if case.kind in GREEDY:
                run |= {"identical": sum(one == other for one, other in zip(own, tokens, strict=True)), "answers": len(own)}
            run |= {"round": number, "new_tokens": work.num_new}
        measured.append(runs)
        times = ", ".join(f"{name} {run['wall']:.2f} s" for name, run in runs.items())
        print(f"  {case.name} {number + 1} (others {disturbance(runs):.0%}): {times}", flush=True)
    kept = sorted(whole_rounds(measured), key=disturbance)[: min(SLOW_ROUNDS, rounds)]
    kept += sorted((runs for runs in measured if runs not in kept), key=disturbance)[: rounds - len(kept)]
    for runs in kept:
        for name, run in runs.items():
            for key, value in run.items():
                found[name].setdefault(key, []).append(value)
    result = {"what": case.what, "kind": case.kind, "rounds_measured": len(measured), "others": [disturbance(runs) for runs in kept]}
    return result | {"contestants": found}


def wait_for_quiet(longest: float = 60.0) -> None:
    """Return when the machine has been idle for half a second, or after ``longest`` seconds."""
    until = time.monotonic() + longest
    while time.monotonic() < until:
        busy = busy_seconds()
        time.sleep(0.5)
        if busy_seconds() - busy <= 0.5 * DISTURBED * (os.cpu_count() or 1):
            return


def whole_rounds(measured: list[dict[str, dict[str, Any]]]) -> list[dict[str, dict[str, Any]]]:
    """Rounds in which all took part."""
    return [runs for runs in measured if len(runs) == max(map(len, measured))]


def disturbance(runs: dict[str, dict[str, Any]]) -> float:
    """Largest share of the machine that others used during a run of a round."""
    return max(run["others"] for run in runs.values())


def run_model(name: str, cases: list[Case], options: argparse.Namespace, out: report.ResultFile) -> None:
    """All cases of one model, with the contestants kept alive."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ms4-inference-")))
        model = write_model(name, folder)
        contestants: list[Process] = []
        judge = Judge(model["hf"])
        for contestant in (OURS, *options.peers):
            print(f"{name}: starting {contestant}", flush=True)
            contestants.append(stack.enter_context(Process(contestant, model, options.threads)))
        out.add_contestants(name, {each.name: each.about for each in contestants})
        for case in cases:
            taking_part = [each for each in contestants if each.about["serves"] or case.kind != "arrivals"]
            out.add_case(case.name, compare(case, taking_part, judge, options.rounds or case.rounds))


def profile(case: Case, threads: int) -> None:
    """Print where the time of our engine goes in one case."""
    import inference_ours

    with tempfile.TemporaryDirectory(prefix="ms4-inference-") as folder:
        contestant = inference_ours.Contestant(write_model(case.model, Path(folder)), threads)
        inference_ours.profile(contestant, [case.work(run).to_dict() for run in range(3)])


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", metavar="PATTERN", help="names or patterns, see --list (default: all; quick: one)")
    parser.add_argument("--rounds", type=int, help="timed runs of each contestant (default: by case; quick: 1)")
    parser.add_argument("--peers", nargs="*", choices=NAMES[1:], help="whom to compare with (default: all that are installed)")
    parser.add_argument("--threads", type=int, default=2, help="of every contestant (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a short look; writes no result file unless --out names one")
    parser.add_argument("--list", action="store_true", help="the cases, and stop")
    parser.add_argument("--profile", choices=list(CASES), metavar="CASE", help="profile our engine in one case, and stop")
    parser.add_argument("--out", type=Path, help="JSON result (default benchmarks/results/inference.json)")
    options = parser.parse_args()
    if options.quick:
        options.rounds = options.rounds or 1
    patterns = options.cases or (QUICK if options.quick else ("*",))
    names = [*CASES, CONTEXT]
    options.cases = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    if not options.cases:
        parser.error(f"--cases: nothing is called {' or '.join(patterns)}; --list shows the names")
    missing = absent(NAMES)
    for name in options.peers or () if options.peers is not None else ():
        if name in missing:
            parser.error(f"--peers: {name}: {missing[name]}")
    if options.peers is None:
        options.peers = [name for name in NAMES[1:] if name not in missing]
        for name, reason in missing.items():
            print(f"{name} does not take part: {reason}")
    return options


def main() -> None:
    """Runs the cases."""
    options = arguments()
    if options.list:
        for name in options.cases:
            print(f"{name:24}{CASES[name].what if name in CASES else inference_context.WHAT}")
        return
    if options.profile:
        profile(CASES[options.profile], options.threads)
        return
    path = options.out or (None if options.quick else support.RESULTS / "inference.json")
    out = report.ResultFile(path, " ".join(["python benchmarks/inference.py", *sys.argv[1:]]), options.threads)
    for model in dict.fromkeys(CASES[name].model for name in options.cases if name in CASES):
        run_model(model, [CASES[name] for name in options.cases if name in CASES and CASES[name].model == model], options, out)
    if CONTEXT in options.cases:
        out.add_case(CONTEXT, inference_context.measure_all(options.threads))
    report.print_results(out.content["cases"], options.cases)


if __name__ == "__main__":
    main()
