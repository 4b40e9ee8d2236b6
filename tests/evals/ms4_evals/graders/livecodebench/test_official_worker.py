"""The worker alone, in a plain process: what it says line by line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ms4_evals.graders.livecodebench.official_worker import WORKER


def talk(code: str, function: str | None, *inputs: str) -> list[dict]:
    """All answers of the worker to a job and its inputs."""
    job = {"code": code, "function": function, "timeout": 1}
    lines = "".join(json.dumps(line) + "\n" for line in (job, *({"input": text} for text in inputs)))
    result = subprocess.run([sys.executable, "-I", "-c", WORKER], input=lines, capture_output=True, text=True, check=False, timeout=60)
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_printed():
    assert talk("print(int(input()) * 2)", None, "1", "x", "2\n") == [
        {"ready": True},
        {"output": "2\n"},
        {"code": -4, "error": "ValueError(\"invalid literal for int() with base 10: 'x'\")"},
        {"output": "4\n"},
    ]


def test_returned():
    assert talk("def f(a, b): return (a, b)", "f", '1\n"x"') == [{"ready": True}, {"value": {"tuple": [1, "x"]}}]


def test_what_is_printed_beside_does_not_reach_the_answers():
    code = "import os\nprint('module')\nos.write(1, b'raw')\ndef f(a):\n    print('function')\n    os.write(1, b'raw')\n    return a"
    assert talk(code, "f", "1") == [{"ready": True}, {"value": 1}]


def test_not_compiled():
    assert talk("print(", None, "1") == [{"code": -4, "error": "'(' was never closed (<string>, line 1)"}]


@pytest.mark.parametrize("code", ["raise KeyboardInterrupt", "import os\nos._exit(0)", "import os\nos.closerange(3, 100)"])
def test_an_end_without_an_answer(code):
    assert talk(code, None, "1") == [{"ready": True}]


def test_output_that_no_text_can_carry():
    assert talk("print('\\ud800')", None, "1") == [{"ready": True}, {"output": "?\n"}]


def test_files_are_the_input_and_functions_come_back_after_each_test():
    code = "import builtins, sys\nprint(builtins.open('any').read(), type(sys.stdin).__name__, builtins.open.__qualname__)"
    assert talk(code, None, "1", "2")[1:] == [{"output": f"{text} Input opener.<locals>.opened\n"} for text in "12"]
