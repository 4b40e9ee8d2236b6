"""Answers to grades: what is extracted, what is graded, what people are told, and what fails without a verdict."""

from __future__ import annotations

import dataclasses
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from ms4_evals.graders.base import GradingFailure
from ms4_evals.graders.livecodebench.grader import OFFICIAL_ID, SHOWN_CHARACTERS, STRICT_ID, LiveCodeBenchGrader, clipped
from ms4_evals.graders.livecodebench.problem import CodeProblem, CodeTest
from ms4_evals.graders.livecodebench.strict import STRICT_LIMITS
from ms4_evals.tasks.base import TaskProblem
from ms4_train.errors import EvaluationError

DOUBLE = CodeProblem("double", None, tuple(CodeTest(f"{number}\n", f"{2 * number}\n") for number in range(1, 5)))
FIRST = CodeProblem("first", "first", (CodeTest("[1, 2]", "1"), CodeTest("[[3], 4]", "[3]")))
RIGHT = "print(2 * int(input()))"
ITERATES = "import sys\nfor line in sys.stdin: print(2 * int(line))"


class Source:
    """Tests by the problem's identifier in the task."""

    def problem(self, problem_id: str) -> CodeProblem:
        known = {"livecodebench/double": DOUBLE, "livecodebench/first": FIRST}
        if problem_id not in known:
            raise EvaluationError("no tests", key=problem_id)
        return known[problem_id]


def asked(name: str) -> TaskProblem:
    return TaskProblem(f"livecodebench/{name}", "?", "digest")


def block(code: str) -> str:
    return f"Here it is:\n```python\n{code}\n```\n"


@pytest.fixture(scope="module")
def grader(sandbox):
    with LiveCodeBenchGrader(Source(), sandbox, workers=2, official_timeout=2) as made:
        yield made


def test_right(grader):
    grade = grader.grade(asked("double"), block(RIGHT), is_truncated=False)
    assert (grade.verdict, grade.opinion, grade.extracted) == ("correct", "correct", RIGHT)
    assert grade.details["class"] == "pass"
    assert (grade.details["tests"], grade.details["kind"]) == (4, "stdin")
    assert grade.details["official"] == {"code": None, "message": "", "tests_run": 4}


def test_wrong_says_where(grader):
    grade = grader.grade(asked("double"), block("n = int(input())\nprint(2 * n if n != 3 else 5)"), is_truncated=False)
    assert (grade.verdict, grade.opinion) == ("wrong", "wrong")
    details = grade.details
    assert (details["class"], details["test"], details["input"], details["expected"], details["got"]) == ("WA", 2, "3\n", "6\n", "5\n")
    assert details["official"]["code"] == -2
    assert details["official"]["message"] == "Wrong answer at output_line_idx=0: 5 != 6"
    assert details["seconds"] < 6


def test_the_two_graders_may_differ(grader):
    grade = grader.grade(asked("double"), block(ITERATES), is_truncated=False)
    assert (grade.verdict, grade.opinion) == ("correct", "wrong")
    assert grade.details["official"]["code"] == -4
    assert "not iterable" in grade.details["official"]["error"]


def test_runtime_errors_show_the_end_of_standard_error(grader):
    grade = grader.grade(asked("double"), block("raise ValueError('here')"), is_truncated=False)
    assert grade.details["class"] == "RE"
    assert grade.details["stderr"].endswith("ValueError: here\n")


def test_functions(grader):
    grade = grader.grade(asked("first"), block("class Solution:\n    def first(self, items): return items[0]"), is_truncated=False)
    assert (grade.verdict, grade.opinion, grade.details["kind"]) == ("correct", "correct", "functional")


@pytest.mark.parametrize(
    ("answer", "is_truncated", "verdict", "extracted", "opinion"),
    [
        ("I do not know.", False, "no-answer", None, "wrong"),
        ("I do not know.", True, "truncated", None, "wrong"),
        ("", True, "truncated", None, "wrong"),
        ("```python\n```", False, "no-answer", None, "wrong"),
        ("```python\n  \n```", False, "no-answer", "  ", "wrong"),
        (block(RIGHT) + "and so", True, "correct", RIGHT, "correct"),
        (f"```python\n{RIGHT}", False, "correct", RIGHT, "wrong"),
        (f"```python\n{RIGHT}", True, "truncated", RIGHT, "wrong"),
        (block(RIGHT) + "```python\nprint(", True, "truncated", "print(", "wrong"),
        (block(RIGHT) + "Here ```print``` is all.", False, "correct", RIGHT, "wrong"),
    ],
)
def test_what_is_graded(grader, answer, is_truncated, verdict, extracted, opinion):
    grade = grader.grade(asked("double"), answer, is_truncated=is_truncated)
    assert (grade.verdict, grade.extracted, grade.opinion) == (verdict, extracted, opinion)


def test_another_code_for_the_official_grader_is_said(grader):
    grade = grader.grade(asked("double"), f"```python\n{RIGHT}", is_truncated=False)
    assert grade.details["official"]["other_code"] is True


def test_details_are_bounded(grader):
    code = "import sys\nprint('x' * 100000)\nprint('y' * 100000, file=sys.stderr)\nsys.exit(1)"
    grade = grader.grade(asked("double"), block(code), is_truncated=False)
    assert len(json.dumps(grade.details)) < 16_000
    assert len(grade.details["got"]) == SHOWN_CHARACTERS
    assert grade.details["got"].endswith("... (100001 characters)")


def test_extracted_code_is_bounded(grader):
    grade = grader.grade(asked("double"), block(RIGHT + "\n#" + "x" * 30_000), is_truncated=False)
    assert grade.verdict == "correct"
    assert len(grade.extracted) == 20_000


def test_many_at_a_time(grader):
    answers = [block(RIGHT), block(ITERATES), block("print(1)"), "nothing"] * 2
    with ThreadPoolExecutor(4) as pool:
        grades = list(pool.map(lambda answer: grader.grade(asked("double"), answer, is_truncated=False), answers))
    assert [(grade.verdict, grade.opinion) for grade in grades[:4]] == [
        ("correct", "correct"),
        ("correct", "wrong"),
        ("wrong", "wrong"),
        ("no-answer", "wrong"),
    ]
    assert [grade.verdict for grade in grades] == [grade.verdict for grade in grades[:4]] * 2


def test_tests_that_cannot_be_had_give_no_verdict(grader):
    with pytest.raises(GradingFailure, match="livecodebench/unknown: no tests"):
        grader.grade(asked("unknown"), block(RIGHT), is_truncated=False)


def test_no_tests_give_no_verdict(sandbox):
    class Empty:
        def problem(self, problem_id):
            problem = CodeProblem("x", None, (CodeTest("", ""),))
            object.__setattr__(problem, "tests", ())
            return problem

    with LiveCodeBenchGrader(Empty(), sandbox) as grader, pytest.raises(GradingFailure, match="x has no tests"):
        grader.grade(asked("double"), block("pass"), is_truncated=False)


class Broken:
    packages = {}
    """A sandbox in which nothing starts."""

    sandbox_id = "broken"
    is_safe = True

    def run(self, files, arguments, **options):
        raise GradingFailure("broken")

    def start(self, files, arguments, **options):
        raise GradingFailure("broken")


def test_a_broken_sandbox_gives_no_verdict():
    with LiveCodeBenchGrader(Source(), Broken()) as grader, pytest.raises(GradingFailure, match="broken"):
        grader.grade(asked("double"), block(RIGHT), is_truncated=False)


def test_identity(sandbox):
    class Unsafe:
        is_safe = False
        packages = {}

    python = f"python-{sys.version_info.major}.{sys.version_info.minor}"
    inside = f"{STRICT_ID} {python}" + "".join(f" {name}" for name in sorted(sandbox.packages))

    def ids(used, **options):
        with LiveCodeBenchGrader(Source(), used, **options) as made:
            return made.grader_id, made.second_grader, made.is_instant

    assert "numpy" in inside
    assert ids(sandbox) == (inside, OFFICIAL_ID, False)
    assert ids(Unsafe())[0] == f"{STRICT_ID} {python} no-sandbox"
    other = dataclasses.replace(STRICT_LIMITS, cpu_seconds=3.0)
    assert ids(sandbox, limits=other)[0] == f"{inside} wall=12 cpu=3 memory=4294967296"
    assert (STRICT_ID, OFFICIAL_ID) == ("livecodebench-strict/1.0", "livecodebench-official/28fef95")


def test_clipped():
    assert clipped("x" * SHOWN_CHARACTERS) == "x" * SHOWN_CHARACTERS
    assert len(clipped("x" * 5000)) == SHOWN_CHARACTERS
