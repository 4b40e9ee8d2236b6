"""The strict grader on programs whose class is known by hand: real processes in the sandbox of this machine."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from ms4_evals.graders.base import GradingFailure
from ms4_evals.graders.livecodebench.problem import CodeProblem, CodeTest
from ms4_evals.graders.livecodebench.strict import BUSY_WALL, STRICT_LIMITS, TEST_CLASSES, StrictGrader, StrictResult, TestRun
from ms4_evals.sandbox.base import Outcome

SHORT = dataclasses.replace(STRICT_LIMITS, cpu_seconds=1.0, memory_bytes=256 << 20)
ECHO = CodeProblem("echo", None, (CodeTest("1 2\n3 4\n", "1 2\n3 4\n"),))
PAIR = CodeProblem("pair", "pair", (CodeTest('[1, 2]\n"x"', '[[1, 2], "x"]'),))

STDIN = [
    ("iterating over stdin", "import sys\nfor line in sys.stdin: print(line, end='')", "pass"),
    ("buffer line by line", "import sys\nread = sys.stdin.buffer.readline\nprint((read() + read()).decode())", "pass"),
    ("buffer.readlines", "import sys\nprint(b''.join(sys.stdin.buffer.readlines()).decode())", "pass"),
    ("input, then read", "print(input())\nprint(sys.stdin.read())", "pass"),
    ("open(0)", "print(open(0).read())", "pass"),
    ("the size of descriptor 0", "import os\nprint(os.read(0, os.fstat(0).st_size).decode())", "pass"),
    ("mmap of descriptor 0", "import mmap\nprint(mmap.mmap(0, 0, access=mmap.ACCESS_READ).read().decode())", "pass"),
    ("stdout.buffer", "import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read())", "pass"),
    ("os.write", "import os\nos.write(1, os.read(0, 100))", "pass"),
    ("global", "text = ''\ndef f():\n    global text\n    text = sys.stdin.read()\nf()\nprint(text)", "pass"),
    ("main guard", "def main(): print(sys.stdin.read())\nif __name__ == '__main__':\n    main()", "pass"),
    ("exit()", "print(sys.stdin.read())\nexit()\nprint('no')", "pass"),
    ("quit()", "print(sys.stdin.read())\nquit()", "pass"),
    ("os._exit after flush", "import os\nprint(sys.stdin.read(), flush=True)\nos._exit(0)", "pass"),
    ("future import", "from __future__ import annotations\nprint(sys.stdin.read())", "pass"),
    ("names of the header", "d = deque(); defaultdict(int); inf; lcm; List; bisect_left; heappush\nprint(sys.stdin.read())", "pass"),
    ("a thread that ends later", "import threading, time\ndef f():\n    time.sleep(0.1)\n    print(sys.stdin.read())\n"
     "threading.Thread(target=f).start()", "pass"),
    ("a large stack", "import threading\nthreading.stack_size(1 << 27)\nthreading.Thread(target=lambda: print(sys.stdin.read())).start()",
     "pass"),
    ("deep recursion", "def f(n): return 0 if n == 0 else 1 + f(n - 1)\nassert f(40000) == 40000\nprint(sys.stdin.read())", "pass"),
    ("many digits", "str(7 ** 50000)\nprint(sys.stdin.read())", "pass"),
    ("numpy", "import numpy as np\nprint(1, int(np.array([2]).sum()))\nprint(3, 4)", "pass"),
    ("dataclass", "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nA(1)\nprint(sys.stdin.read())", "pass"),
    ("1.0 is 1", "print('1.0 2')\nprint('3 4.00')", "pass"),
    ("wrong", "print(1)", "WA"),
    ("nothing", "pass", "WA"),
    ("exit at once", "exit()", "WA"),
    ("os._exit(0) at once", "import os\nos._exit(0)", "WA"),
    ("os._exit before the flush", "import os\nprint(sys.stdin.read())\nos._exit(0)", "WA"),
    ("right, then exit 1", "print(sys.stdin.read())\nsys.exit(1)", "RE"),
    ("exception", "1 / 0", "RE"),
    ("no such module", "import no_such_module", "RE"),
    ("killed itself", "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "RE"),
    ("reading past the end", "input(); input(); input()", "RE"),
    ("syntax", "print(", "CE"),
    ("indentation", "if True:\nprint(1)", "CE"),
    ("not Python", "#include <iostream>\nint main() {}", "CE"),
    ("null byte", "x = 1\0", "CE"),
    ("lone surrogate", "print('\ud800')", "WA"),
    ("spinning", "while True: pass", "TLE"),
    ("memory", "x = bytearray(600 << 20)\nx[:] = b'x' * len(x)", "MLE"),
    ("output", "while True: print('x' * 100000)", "OLE"),
]  # fmt: skip


@pytest.fixture(scope="module")
def grader(sandbox):
    return StrictGrader(sandbox, limits=SHORT)


@pytest.mark.parametrize(("code", "verdict"), [case[1:] for case in STDIN], ids=[case[0] for case in STDIN])
def test_programs(grader, code, verdict):
    result = grader.grade(ECHO, code)
    (run,) = result.runs
    assert run.verdict == verdict, run.stderr
    assert result.passed == (verdict == "pass")


def test_every_class_was_seen():
    assert {verdict for _, _, verdict in STDIN} == set(TEST_CLASSES)


FUNCTIONS = [
    ("method", "class Solution:\n    def pair(self, a, b):\n        return [a, b]", "pass"),
    ("plain function", "def pair(a, b): return [a, b]", "pass"),
    ("names of the header", "class Solution:\n    def pair(self, a: List[int], b: str) -> List[Any]:\n        return [a, b]", "pass"),
    ("printing does not matter", "def pair(a, b):\n    print('x' * 10000)\n    return [a, b]", "pass"),
    ("tuple for a list, nested too", "def pair(a, b): return (tuple(a), b)", "pass"),
    ("a main guard does not run", "def pair(a, b): return [a, b]\nif __name__ == '__main__': 1 / 0", "pass"),
    ("numbers of numpy", "import numpy\ndef pair(a, b): return [list(numpy.array(a)), b]", "pass"),
    ("both, the method counts", "def pair(a, b): return 1\nclass Solution:\n    def pair(self, a, b): return [a, b]", "pass"),
    ("future import", "from __future__ import annotations\ndef pair(a, b): return [a, b]", "pass"),
    ("wrong", "def pair(a, b): return [b, a]", "WA"),
    ("None", "def pair(a, b): pass", "WA"),
    ("printed, not returned", "def pair(a, b): print([a, b])", "WA"),
    ("says yes to everything", "class Yes:\n    def __eq__(self, other): return True\ndef pair(a, b): return Yes()", "WA"),
    ("list that says yes", "class Yes(list):\n    def __eq__(self, other): return True\ndef pair(a, b): return Yes()", "WA"),
    ("exit(0)", "def pair(a, b): exit()", "WA"),
    ("os._exit(0)", "import os\ndef pair(a, b): os._exit(0)", "WA"),
    ("huge integer", "def pair(a, b): return 2 ** 1_000_000", "WA"),
    ("generator", "def pair(a, b): yield a", "WA"),
    ("writes nonsense to every descriptor", "import os\ndef pair(a, b):\n    for fd in range(10):\n        try: os.write(fd, b'[')\n"
     "        except OSError: pass\n    return [a, b]", "WA"),
    ("missing", "def other(a, b): return [a, b]", "RE"),
    ("exception", "def pair(a, b): return a[5]", "RE"),
    ("too few parameters", "def pair(a): return a", "RE"),
    ("exit(1)", "def pair(a, b): sys.exit(1)", "RE"),
    ("syntax", "def pair(a, b) return [a, b]", "CE"),
    ("spinning", "def pair(a, b):\n    while True: pass", "TLE"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "verdict"), [case[1:] for case in FUNCTIONS], ids=[case[0] for case in FUNCTIONS])
def test_functions(grader, code, verdict):
    (run,) = grader.grade(PAIR, code).runs
    assert run.verdict == verdict, run.stderr


def test_one_object_and_fresh_arguments_for_every_test(grader):
    tests = tuple(CodeTest("[1]", "[1, 0]") for _ in range(3))
    code = (
        "class Solution:\n    calls = 0\n    def f(self, a):\n        a.append(self.calls)\n        Solution.calls += 1\n        return a"
    )
    assert grader.grade(CodeProblem("state", "f", tests), code).passed


NUMBERS = CodeProblem("numbers", None, tuple(CodeTest(f"{number}", f"{number}") for number in range(6)))


def test_stops_at_the_first_failing_test(grader):
    result = grader.grade(NUMBERS, "n = int(input())\nprint(n if n not in (2, 4) else 'x')")
    assert [run.verdict for run in result.runs] == ["pass", "pass", "WA"]
    assert (result.failing.index, result.failing.got, result.tests) == (2, "x\n", 6)


def test_runs_all_when_asked(grader):
    result = grader.grade(NUMBERS, "n = int(input())\nprint(n if n not in (2, 4) else 'x')", run_all=True)
    assert [run.verdict for run in result.runs] == ["pass", "pass", "WA", "pass", "WA", "pass"]
    assert result.failing.index == 2
    assert not result.passed


@pytest.mark.parametrize("run_all", [False, True])
def test_side_by_side_gives_the_same(sandbox, grader, run_all):
    code = "import time\nn = int(input())\ntime.sleep(0.3 if n == 1 else 0)\nprint(n if n not in (1, 4) else 'x')"
    with ThreadPoolExecutor(4) as pool:
        beside = StrictGrader(sandbox, executor=pool, workers=4, limits=SHORT).grade(NUMBERS, code, run_all=run_all)
    alone = grader.grade(NUMBERS, code, run_all=run_all)
    assert [(run.index, run.verdict, run.got) for run in beside.runs] == [(run.index, run.verdict, run.got) for run in alone.runs]
    assert beside.failing.index == 1


def test_syntax_errors_are_one_class_for_all_tests(grader):
    result = grader.grade(NUMBERS, "n = (", run_all=True)
    assert {run.verdict for run in result.runs} == {"CE"}
    assert "SyntaxError" in result.failing.stderr


def test_an_expected_output_larger_than_the_output_limit_can_be_printed(sandbox):
    size = 100_000
    limits = dataclasses.replace(SHORT, output_bytes=1000)
    problem = CodeProblem("long", None, (CodeTest(f"{size}", "x" * size),))
    assert StrictGrader(sandbox, limits=limits).grade(problem, "print('x' * int(input()))").passed
    assert StrictGrader(sandbox, limits=limits).grade(problem, "print('x' * 10 * int(input()))").failing.verdict == "OLE"


def test_an_expected_value_that_is_no_json_is_no_fault_of_the_answer(grader):
    with pytest.raises(GradingFailure, match="expected output of test 0"):
        grader.grade(CodeProblem("bad", "f", (CodeTest("1", "[1"),)), "def f(a): return [1]")


class Scripted:
    """A sandbox that ends every run as it was told, and keeps what it was given."""

    sandbox_id = "scripted"
    is_safe = True

    def __init__(self, *outcomes: Outcome) -> None:
        self._outcomes = list(outcomes)
        self.runs = []

    def run(self, files, arguments, *, stdin=b"", limits=None):
        self.runs.append((files, arguments, stdin, limits))
        return self._outcomes.pop(0)


def ended(status, *, cpu_seconds=0.0, stdout=b"", exit_code=None):
    return Outcome(status, exit_code, None, stdout, b"why", 1.0, cpu_seconds, 0)


def test_a_busy_machine_gets_more_wall_time_and_a_sleeping_program_does_not():
    sandbox = Scripted(ended("wall-time", cpu_seconds=2.0), ended("exited", exit_code=0, stdout=b"1 2\n3 4"))
    assert StrictGrader(sandbox).grade(ECHO, "x").passed
    assert [run[3].wall_seconds for run in sandbox.runs] == [12.0, 12.0 * BUSY_WALL]
    sandbox = Scripted(ended("wall-time", cpu_seconds=0.3))
    assert StrictGrader(sandbox).grade(ECHO, "x").failing.verdict == "TLE"
    sandbox = Scripted(ended("wall-time", cpu_seconds=2.0), ended("cpu-time", cpu_seconds=6.0))
    assert StrictGrader(sandbox).grade(ECHO, "x").failing.verdict == "TLE"


def test_a_failing_sandbox_is_tried_twice_and_then_no_verdict():
    right = ended("exited", exit_code=0, stdout=b"1 2\n3 4")
    assert StrictGrader(Scripted(ended("sandbox-error"), right)).grade(ECHO, "x").passed
    with pytest.raises(GradingFailure, match="the sandbox failed: why"):
        StrictGrader(Scripted(ended("sandbox-error"), ended("sandbox-error"))).grade(ECHO, "x")


def test_expected_outputs_never_go_in():
    secret = "the expected output"
    for problem in (CodeProblem("a", None, (CodeTest("1", secret),)), CodeProblem("b", "f", (CodeTest("1", json.dumps(secret)),))):
        sandbox = Scripted(ended("exited", exit_code=0))
        assert not StrictGrader(sandbox).grade(problem, "x").passed
        assert secret not in repr(sandbox.runs)


def test_a_result_without_runs_passes_nothing():
    run = TestRun(0, "pass", "", "", 0.0, 0.0)
    assert not StrictResult((), 0).passed
    assert not StrictResult((run,), 2).passed
    assert StrictResult((run,), 1).passed


def test_what_follows_a_right_answer_is_not_held():
    """A program that passes may print megabytes of white space in each of a hundred tests."""

    class Spaces:
        def run(self, files, arguments, *, stdin=b"", limits):
            return Outcome("exited", 0, None, b"1 2\n3 4\n" + b" " * (1 << 20), b"", 0.1, 0.1, 0)

    result = StrictGrader(Spaces()).grade(ECHO, "pass")
    assert result.passed
    assert len(result.runs[0].got) <= 1000
