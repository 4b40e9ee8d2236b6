"""The programs of the strict grader that run inside the sandbox, as texts: they see a candidate and one test's input, nothing else.

``HEADER`` is what LiveCodeBench puts before every candidate, quoted exactly (``import_string`` of
``lcb_runner/evaluation/testing_util.py``, commit 28fef95): candidates were written knowing that ``List``, ``deque`` or ``inf`` are there.
It runs before the candidate and in the same namespace, not in front of it in the same file, so that line numbers stay and ``from
__future__`` works.

Exercise it: ``pytest tests/evals/ms4_evals/graders/livecodebench/test_programs.py``.
"""

from __future__ import annotations

from ms4_evals.graders.livecodebench.values import ENCODER

_STARRED = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json builtins typing"
)
_NAMED = "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json"
HEADER = (
    "".join(f"from {module} import *\n" for module in _STARRED.split())
    + "".join(f"import {module}\n" for module in _NAMED.split())
    + "sys.setrecursionlimit(50000)\n"
)

CANDIDATE = "solution.py"
MAIN = "main.py"

# LiveCodeBench lets integers of 50,000 digits be printed (sys.set_int_max_str_digits in compute_code_generation_metrics.py).
ARGUMENTS = ("-I", "-X", "int_max_str_digits=50000", MAIN)

_START = rf"""
import os
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
with open({CANDIDATE!r}, "rb") as _file:
    _candidate = compile(_file.read(), {CANDIDATE!r}, "exec", 0, True)
"""

STDIN_PROGRAM = (
    _START
    + rf"""
_run = exec
del os, _file
_run({HEADER!r})
_run(_candidate)
"""
)

# The result leaves on a descriptor that printing does not reach; what the candidate prints goes nowhere, and it finds nothing to read.
FUNCTION_PROGRAM = (
    _START
    + ENCODER
    + rf"""
import json, sys, types
_result = os.dup(1)
_nowhere = os.open(os.devnull, os.O_RDWR)
_name, *_arguments = [json.loads(line) for line in sys.stdin.buffer.read().decode("utf-8").split("\n") if line.strip()]
os.dup2(_nowhere, 0)
os.dup2(_nowhere, 1)

def _call(write, leave, dumps):
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    exec({HEADER!r}, module.__dict__)
    exec(_candidate, module.__dict__)
    owner = getattr(module, "Solution", None)
    function = getattr(owner() if hasattr(owner, _name) else module, _name)
    value = dumps(_encode(function(*_arguments))).encode("ascii")
    while value:
        value = value[write(_result, value):]
    leave(0)

_call(os.write, os._exit, json.dumps)
"""
)

# Compiles, and runs nothing of the candidate: its exit code can be believed.
COMPILE_PROGRAM = rf"""
import sys
try:
    with open({CANDIDATE!r}, "rb") as file:
        compile(file.read(), {CANDIDATE!r}, "exec", 0, True)
except Exception as error:
    print(f"{{type(error).__name__}}: {{error}}"[:1000])
    sys.exit(3)
"""
COMPILE_FAILED = 3
