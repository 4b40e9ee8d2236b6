"""The official grader gives LiveCodeBench's verdicts, right or not.

``PROBES`` holds every row of the table of its known faults, and more. The results were written down by running LiveCodeBench's own grader
(``evaluate_generations_by_problem`` of the package nvidia-livecodebench 26.3, its stand-in for standard input brought to commit
28fef95, standard input empty) on the same programs. One list differs: before the -4 of a numpy array it keeps the array's first element.
"""

from __future__ import annotations

import dataclasses

import pytest

from ms4_evals.graders.base import GradingFailure
from ms4_evals.graders.livecodebench.official import OfficialResult, grade_official
from ms4_evals.graders.livecodebench.problem import CodeTest
from ms4_evals.sandbox.base import Limits, Outcome

TWO = (CodeTest("1 2\n3 4", "1 2\n3 4"),)
RUNTIME_ERROR, TIME_LIMIT, RUNNER_ERROR = (-4, "Runtime Error"), (-3, "Time Limit Exceeded"), (-5, "TestRunnerError")
LENGTH = (-2, "Wrong answer: mismatched output length")
PASS = (None, "")

# name, program, (code, message)
PROBES = [
    ("for line in sys.stdin", "import sys\nfor line in sys.stdin: print(line, end='')", RUNTIME_ERROR),
    ("buffer.readline twice", "import sys\nr = sys.stdin.buffer.readline\nprint((r() + r()).decode())",
     (-2, "Wrong answer at output_line_idx=1: 1 2 != 3 4")),
    ("buffer.readlines", "import sys\nprint(b''.join(sys.stdin.buffer.readlines()).decode())", RUNTIME_ERROR),
    ("input, then read", "import sys\nprint(input())\nprint(sys.stdin.read())", LENGTH),
    ("open(0).read", "print(open(0).read())", LENGTH),
    ("builtins.open", "import builtins\nprint(builtins.open('any').read())", PASS),
    ("io.open of descriptor 0", "import io\nprint(io.open(0).read())", LENGTH),
    ("asyncio", "import asyncio, sys\nasync def f(): print(sys.stdin.read())\nasyncio.run(f())", PASS),
    ("os.read(0)", "import os\nprint(os.read(0, 100).decode())", LENGTH),
    ("stdout.buffer.write", "import sys\nsys.stdout.buffer.write(sys.stdin.read().encode())", RUNTIME_ERROR),
    ("global", "import sys\nx = ''\ndef f():\n    global x\n    x += sys.stdin.read()\nf()\nprint(x)", RUNTIME_ERROR),
    ("exit() after print", "import sys\nprint(sys.stdin.read())\nexit()", PASS),
    ("sys.exit() after print", "import sys\nprint(sys.stdin.read())\nsys.exit()", PASS),
    ("sys.exit(1) after print", "import sys\nprint(sys.stdin.read())\nsys.exit(1)", PASS),
    ("os._exit(0)", "import os, sys\nprint(sys.stdin.read())\nos._exit(0)", RUNNER_ERROR),
    ("alarm switched off", "import signal, sys, time\nsignal.alarm(0)\ntime.sleep(1.5)\nprint(sys.stdin.read())", PASS),
    ("alarm swallowed", "import sys, time\ntry: time.sleep(3)\nexcept Exception: pass\nprint(sys.stdin.read())", LENGTH),
    ("the alarm's own words", "import sys, time\ntry: time.sleep(3)\nexcept Exception: print('3 4')",
     (-2, "Wrong answer at output_line_idx=0: timeout occured: alarm went off != 1 2")),
    ("1.5 GB", "import sys\nx = bytearray(1_500_000_000)\nprint(sys.stdin.read())", PASS),
    ("sleeping", "import time\ntime.sleep(5)", TIME_LIMIT),
    ("spinning", "while True: pass", TIME_LIMIT),
    ("read", "import sys\nprint(sys.stdin.read())", PASS),
    ("input", "print(input())\nprint(input())", PASS),
    ("input past the end", "print(input())\nprint(input())\ninput()", RUNTIME_ERROR),
    ("readline past the end", "import sys\nprint(sys.stdin.readline() + sys.stdin.readline() + sys.stdin.readline())", PASS),
    ("readlines without line feeds", "import sys\nprint(''.join(sys.stdin.readlines()))", LENGTH),
    ("buffer.read", "import sys\nprint(sys.stdin.buffer.read().decode())", PASS),
    ("fileno", "import sys\nsys.stdin.fileno()", RUNTIME_ERROR),
    ("stdout closed", "import sys\nprint(sys.stdin.read())\nsys.stdout.close()", RUNTIME_ERROR),
    ("written to descriptor 1", "import os\nos.write(1, b'1 2\\n3 4\\n')", LENGTH),
    ("quit() is taken away", "import sys\nprint(sys.stdin.read())\nquit()", RUNTIME_ERROR),
    ("os.getcwd is taken away", "import os, sys\nos.getcwd()\nprint(sys.stdin.read())", RUNTIME_ERROR),
    ("resource is taken away", "import resource, sys\nprint(sys.stdin.read())",
     (-4, "Error during testing: import of resource halted; None in sys.modules")),
    ("main guard last", "import sys\nif __name__ == '__main__':\n    print(sys.stdin.read())", PASS),
    ("main guard not last", "import sys\nif __name__ == '__main__':\n    print(sys.stdin.read())\nx = 1", LENGTH),
    ("main guard the other way round", "import sys\nif '__main__' == __name__:\n    print(sys.stdin.read())", LENGTH),
    ("class Solution", "import sys\nclass Solution: pass\nprint(sys.stdin.read())",
     (-4, "Error during testing: module 'tmp_sol' has no attribute 'Solution'")),
    ("future import", "from __future__ import annotations\nimport sys\nprint(sys.stdin.read())",
     (-4, "Error during testing: from __future__ imports must occur at the beginning of the file (<string>, line 37)")),
    ("star import inside a block", "try:\n    from math import *\nexcept ImportError: pass\nprint(1)",
     (-4, "Error during testing: import * only allowed at module level (<string>, line 40)")),
    ("nothing but imports", "import sys",
     (-4, "Error during testing: expected an indented block after function definition on line 38 (<string>, line 38)")),
    ("nothing", "", (-4, "Error during testing: expected an indented block after function definition on line 38 (<string>, line 38)")),
    ("syntax", "print(", (-4, "Error during testing: '(' was never closed (<string>, line 1)")),
    ("thread", "import threading, time\ndef f():\n    time.sleep(0.2)\n    print('1 2\\n3 4')\nthreading.Thread(target=f).start()",
     LENGTH),
    ("KeyboardInterrupt", "raise KeyboardInterrupt", RUNNER_ERROR),
    ("segmentation fault", "import ctypes\nctypes.string_at(0)", RUNNER_ERROR),
    ("wrong", "print('1 2')\nprint('3 5')", (-2, "Wrong answer at output_line_idx=1: 3 5 != 3 4")),
    ("decimal", "print('1.0 2')\nprint('3 4e0')", PASS),
    ("a long line", "print('x' * 400)\nprint(1)",
     (-2, f"Wrong answer at output_line_idx=0: {'x' * 150}...(truncated) ...{'x' * 150} != 1 2")),
    ("signalling NaN", "print('sNaN 2')\nprint('3 4')",
     (-4, "Error during testing: [<class 'decimal.InvalidOperation'>]")),
    ("numpy", "import numpy as np\nprint(1, np.int64(2))\nprint(3, 4)", PASS),
]  # fmt: skip


def seconds_for(code: str) -> int:
    """A second where the alarm is wanted; else much more than the original's six, so that a busy machine changes nothing."""
    return 1 if "sleep" in code or "while" in code else 60


@pytest.mark.parametrize(("code", "expected"), [case[1:] for case in PROBES], ids=[case[0] for case in PROBES])
def test_probes(sandbox, code, expected):
    result = grade_official(sandbox, code, None, TWO, timeout=seconds_for(code))
    assert (result.code, result.message) == expected, result.error
    assert result.results == ((True,) if expected == PASS else (-2,) if expected == RUNNER_ERROR else (result.code,))
    assert result.passed == (expected == PASS)


ONE = (CodeTest("[1, 2]", "[1, 2]"), CodeTest("[3]", "[3]"))
WRONG = (-2, "Wrong Answer")
NOT_UNPACKED = (-4, "Error during testing: cannot unpack non-iterable NoneType object")

# name, program, results, (code, message)
FUNCTIONS = [
    ("method", "class Solution:\n    def f(self, a): return a", (True, True), PASS),
    ("plain function", "def f(a): return a", (True, True), PASS),
    ("tuple", "def f(a): return tuple(a)", (True, True), PASS),
    ("tuple inside", "def f(a): return [tuple(a)][0] if a == [3] else [(1, 2)]", (False,), WRONG),
    ("one object for all tests", "class Solution:\n    n = 0\n    def f(self, a):\n        self.n += 1\n"
     "        return a if self.n == 1 else 0",
     (True, False), WRONG),
    ("floats are integers", "def f(a): return [float(x) for x in a]", (True, True), PASS),
    ("no tolerance", "def f(a): return [x + 1e-12 for x in a]", (False,), WRONG),
    ("stops at the first failure", "def f(a): return 0", (False,), WRONG),
    ("exception", "def f(a): return a[5]", (-4,), RUNTIME_ERROR),
    ("alarm", "import time\ndef f(a):\n    time.sleep(5)", (-3,), TIME_LIMIT),
    ("alarm while compiling", "import time\ntime.sleep(5)", (-4,), (-4, "Error during testing: ")),
    ("exit() in the function", "def f(a): exit()", (-2,), RUNNER_ERROR),
    ("exit() in the module", "exit()", (-2,), RUNNER_ERROR),
    ("missing", "def g(a): return a", (-4,), NOT_UNPACKED),
    ("missing method", "class Solution:\n    def g(self, a): return a", (-4,), NOT_UNPACKED),
    ("nothing", "", (-4,), NOT_UNPACKED),
    ("Solution in a comment", "# class Solution\ndef f(a): return a", (-4,),
     (-4, "Error during testing: module 'tmp_sol' has no attribute 'Solution'")),
    ("syntax", "def f(a) return a", (-4,), (-4, "Error during testing: expected ':' (<string>, line 38)")),
    ("reads stdin", "def f(a): return a if input() else 0", (-4,), RUNTIME_ERROR),
    ("numpy scalars", "import numpy\ndef f(a): return [numpy.int64(x) for x in a]", (True, True), PASS),
    ("numpy array", "import numpy\ndef f(a): return numpy.array(a)", (-4,), RUNTIME_ERROR),
    ("huge integer", "def f(a): return 2 ** 1_000_000", (False, -4), RUNTIME_ERROR),
    ("set", "def f(a): return set(a)", (False,), WRONG),
    ("generator", "def f(a): yield from a", (False,), WRONG),
]  # fmt: skip


@pytest.mark.parametrize(("code", "results", "expected"), [case[1:] for case in FUNCTIONS], ids=[case[0] for case in FUNCTIONS])
def test_functions(sandbox, code, results, expected):
    result = grade_official(sandbox, code, "f", ONE, timeout=seconds_for(code))
    assert (result.results, (result.code, result.message)) == (results, expected), result.error
    assert result.passed == (expected == PASS)


# The original's verdict on each of these is a pass.
CHEATS = [
    ("equal to everything", "class Yes:\n    def __eq__(self, other): return True\ndef f(a): return Yes()"),
    ("a list equal to everything", "class Yes(list):\n    def __eq__(self, other): return True\ndef f(a): return Yes()"),
    ("the expected value in the frame above", "import sys\ndef f(a): return sys._getframe(1).f_locals['gt_out']"),
    ("the expected value in any frame", "import sys\ndef f(a):\n    frame = sys._getframe()\n    while 'gt_out' not in frame.f_locals:\n"
     "        frame = frame.f_back\n    return frame.f_locals['gt_out']"),
]  # fmt: skip


@pytest.mark.parametrize("code", [case[1] for case in CHEATS], ids=[case[0] for case in CHEATS])
def test_cheats_of_the_original_do_not_work_here(sandbox, code):
    assert not grade_official(sandbox, code, "f", ONE, timeout=1).passed


def test_forged_answers_are_outputs_at_most(sandbox):
    forge = "import __main__\n__main__.reply({{{}}})\n__main__.reply({{{}}})"
    for words in ('"ready": True', '"output": "1 2"', '"value": True', '"results": [True]', '"code": 0'):
        assert not grade_official(sandbox, forge.format(words, words), None, TWO, timeout=1).passed
    # What it may say is what printing would have said.
    assert grade_official(sandbox, forge.format('"output": "1 2\\n3 4"', '"output": ""'), None, TWO, timeout=1).passed


def test_the_empty_list_of_tests_is_a_pass(sandbox):
    """The fault is reproduced here; no problem without tests can be made (``CodeProblem``), so nothing reaches it."""
    assert grade_official(sandbox, "1 / 0", None, (), timeout=1) == OfficialResult(())
    assert grade_official(sandbox, "1 / 0", None, (), timeout=1).passed
    assert not grade_official(sandbox, "print(", None, (), timeout=1).passed


def test_the_time_over_all_tests_ends_as_a_runner_error(sandbox):
    # (1 + 1) * 1 + 5 seconds of a program that switched the alarm off.
    result = grade_official(sandbox, "import signal, time\nsignal.alarm(0)\ntime.sleep(100)", None, TWO, timeout=1)
    assert result == OfficialResult((-2,), -5, "TestRunnerError")


def test_an_input_that_is_no_json_ends_the_whole_run(sandbox):
    tests = (*ONE, CodeTest("[1]\n", "[1]"))
    result = grade_official(sandbox, "def f(a): return a", "f", tests, timeout=1)
    assert (result.results, result.code) == ((-4,), -4)


class Scripted:
    """A session that answers as it was told, and keeps what it was asked."""

    def __init__(self, *lines: bytes | None, status: str = "exited") -> None:
        self.lines = list(lines)
        self.sent = b""
        self.status = status

    def start(self, files, arguments, *, limits: Limits):
        self.sent += b"".join(files.values())
        return self

    def send(self, data):
        self.sent += data

    def read_line(self, timeout):
        return self.lines.pop(0) if self.lines else None

    def close(self):
        return Outcome(self.status, 0, None, b"", b"why", 0.0, 0.0, 0)


READY = b'{"ready": true}\n'


def test_expected_outputs_never_go_in():
    scripted = Scripted(READY, b'{"output": "no"}\n')
    assert not grade_official(scripted, "x", None, (CodeTest("1", "the expected output"),)).passed
    assert b"the expected output" not in scripted.sent


@pytest.mark.parametrize("line", [None, b"nonsense\n", b"[]\n", b"{}\n", b'{"value": 1}\n', b'{"output": 1}\n', b'{"output": "x"'])
def test_what_is_no_answer_of_the_worker_is_a_runner_error(line):
    assert grade_official(Scripted(READY, line), "x", None, TWO) == OfficialResult((-2,), -5, "TestRunnerError")


def test_a_failing_sandbox_gives_no_verdict():
    with pytest.raises(GradingFailure, match="the sandbox failed: why"):
        grade_official(Scripted(None, status="sandbox-error"), "x", None, TWO)


def test_the_result_of_an_empty_list_passes_and_zero_does_not():
    assert OfficialResult(()).passed
    assert not dataclasses.replace(OfficialResult((True,)), results=(True, False)).passed


@pytest.mark.parametrize(
    "returned",
    [
        "type('ndarray', (), {'__module__': 'numpy', 'size': 1, 'tolist': lambda self: []})()",
        "type('ndarray', (), {'__module__': 'numpy', 'size': 1, 'tolist': lambda self: self})()",
        "type('ndarray', (), {'__module__': 'numpy', 'size': None, 'tolist': lambda self: None})()",
        "type('ndarray', (), {'__module__': 'numpy', 'size': 1, 'tolist': lambda self: [[], 1]})()",
    ],
)
def test_an_array_that_lies_about_its_size_is_a_failure_of_the_program(sandbox, returned):
    """Not of the grader: an exception here would end the whole evaluation, and every start of it anew."""
    result = grade_official(sandbox, f"def f(x):\n    return {returned}\n", "f", [CodeTest("1", "1")])
    assert not result.passed
