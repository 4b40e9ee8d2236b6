"""LiveCodeBench's own grader on samples from standard input, run by a Python that has nvidia-livecodebench (``grading.py --peer``).

Reads one JSON object (``workers``, ``samples`` of ``code``, ``function``, ``inputs``, ``outputs``); the last line of standard output is a
list of verdicts. Exercise it: ``python benchmarks/grading.py --repeats 1 --peer PYTHON``.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

SECONDS = 6


def accepted(sample: dict[str, Any]) -> bool:
    """As its ``codegen_metrics`` decides: every result above zero. Each call forks a child that runs the program."""
    from livecodebench.evaluation.compute_code_generation_metrics import evaluate_generations_by_problem  # pyright: ignore

    tests = {"inputs": sample["inputs"], "outputs": sample["outputs"], "fn_name": sample["function"]}
    results, _ = evaluate_generations_by_problem(([sample["code"]], {"input_output": json.dumps(tests)}, False, SECONDS))
    return all(result > 0 for result in results[0])


def main() -> None:
    """Grade all samples."""
    request = json.load(sys.stdin)
    # What its children print goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with ThreadPoolExecutor(request["workers"]) as pool:
        verdicts = list(pool.map(accepted, request["samples"]))
    answers.write(json.dumps(verdicts) + "\n")
    answers.close()


if __name__ == "__main__":
    main()
