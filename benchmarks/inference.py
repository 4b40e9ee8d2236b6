"""Inference on a CPU, ours against transformers, vLLM and llama.cpp: the same fp32 weights and prompts, two threads, a process for each.

Every contestant runs inside one process that stays alive: transformers' ``generate`` with its fastest experts, vLLM's CPU wheel compiled,
llama.cpp's library under a loop of continuous batching, our engine. Of several ways to run a contestant the one that is fastest in a
case takes part in it. Before a case is timed greedy tokens are compared (``inference_check.py``), and again in every round. Rounds
alternate, A B C D, D C B A, with new prompts each, and every ratio is one of neighbours in time. vLLM and llama.cpp live in
``.venv-peers`` (``make peers``).

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
from pathlib import Path
from typing import Any

import inference_context
import inference_report as report
import support
from inference_cases import CASES, QUICK, Case, write_model
from inference_check import Judge
from inference_pool import NAMES, OURS, Process, absent

SLOW_SECONDS = 20
SLOW, SLOW_ROUNDS = 6, 2
"""A contestant that takes so many times as long as ours takes part in so many rounds only."""
GREEDY = ("batch", "uneven")
CONTEXT = "context"


def calibrate(contestant: Process, case: Case) -> tuple[dict[str, list[list[int]]], dict[str, float]]:
    """Answers of each variant to the prompts of run 0, and wall seconds of each: on those of run 1, warm, unless it is slow anyway."""
    answers, seconds = {}, {}
    works = [case.work(run).to_dict() for run in (0, 1)]
    for variant in contestant.ask("variants", work=works[0])["variants"]:
        run = contestant.ask("run", variant=variant, work=works[0])
        answers[variant], seconds[variant] = run.get("tokens", []), run["wall"]
        if run["wall"] < min(SLOW_SECONDS, 2 * min(seconds.values())):
            seconds[variant] = contestant.ask("run", variant=variant, work=works[1])["wall"]
    return answers, seconds


def compare(case: Case, contestants: list[Process], judge: Judge, rounds: int) -> dict[str, Any]:
    """Check and time one case; what the result file says of it."""
    result: dict[str, Any] = {"what": case.what, "kind": case.kind, "rounds": rounds, "load_before": os.getloadavg()[0]}
    chosen: dict[str, str] = {}
    found: dict[str, dict[str, Any]] = {}
    fastest: dict[str, float] = {}
    ours: list[list[int]] = []
    for contestant in contestants:
        name = contestant.name
        answers, seconds = calibrate(contestant, case)
        found[name] = {"variant_seconds": seconds, "wall": [], "cpu": [], "peak_mib": []}
        if case.kind in GREEDY:
            ours = ours or next(iter(answers.values()))
            agreements = {variant: judge.compare(case.work(0).prompts, ours, tokens) for variant, tokens in answers.items()}
            found[name]["checked"] = {variant: str(agreement) for variant, agreement in agreements.items()}
            seconds = {variant: seconds[variant] for variant, agreement in agreements.items() if agreement.alike}
            if not seconds:
                raise SystemExit(f"{case.name}: {name} does not answer as ours does: {found[name]['checked']}")
        elif case.kind == "arrivals":  # their times say when the last request came
            seconds = dict.fromkeys(list(seconds)[:1], 0.0)
        chosen[name] = found[name]["variant"] = min(seconds, key=lambda variant: seconds[variant])
        fastest[name] = seconds[chosen[name]]
    for number in range(rounds):
        work = case.work(2 + number)
        result.setdefault("new_tokens", []).append(work.num_new)
        quick = [each for each in contestants if number < SLOW_ROUNDS or fastest[each.name] <= SLOW * fastest[OURS]]
        order = quick if number % 2 == 0 else quick[::-1]
        runs = {each.name: each.ask("run", variant=chosen[each.name], work=work.to_dict()) for each in order}
        own = runs[OURS].get("tokens", [])
        for name, run in runs.items():
            if case.kind in GREEDY:
                run["identical"] = sum(one == other for one, other in zip(own, run["tokens"], strict=True))
                run["answers"] = len(own)
            run.pop("tokens", None)
            for key, value in run.items():
                found[name].setdefault(key, []).append(value)
        print(f"  {case.name} {number + 1}/{rounds}: " + ", ".join(f"{name} {run['wall']:.2f} s" for name, run in runs.items()), flush=True)
    result["load_after"] = os.getloadavg()[0]
    return result | {"contestants": found}


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
