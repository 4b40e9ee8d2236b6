r"""The process that math-verify runs in: one JSON request per line on standard input, one JSON reply per line on standard output.

math-verify guards itself with signals that neither threads nor C code obey, so its time limit is kept from outside
(``second_opinion``), by killing this process; its memory is limited here. It is shown final answers only.

Exercise it: ``echo '{"answer": "\\boxed{140/2}", "gold": "70"}' | python -m ms4_evals.graders.math_verify_worker``, or
``pytest tests/evals/ms4_evals/graders/test_math_verify_worker.py``.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import resource
import signal
import sys

MAX_MEMORY_BYTES = 4 << 30
MAX_ANSWER_CHARACTERS = 20_000
_PR_SET_PDEATHSIG = 1


def judge(answer: str, gold: str) -> bool:
    """Whether math-verify finds the gold integer in a final answer, of which it sees the last ``MAX_ANSWER_CHARACTERS``."""
    from math_verify import parse, verify

    # None turns the library's own alarm off; its signature says int, its documentation says None is meant.
    found = parse(answer[-MAX_ANSWER_CHARACTERS:], parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    expected = parse(f"\\boxed{{{gold}}}", parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    return bool(verify(expected, found, timeout_seconds=None))


def main() -> None:
    """Answer requests until standard input ends. The first line out says whether math-verify is there."""
    _die_with_parent()
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    try:
        judge("\\boxed{1}", "1")
    except ImportError:
        _say({"ready": False})
        return
    _say({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            _say({"is_correct": judge(request["answer"], request["gold"])})
        except Exception as error:
            # Whatever a hostile answer makes the library raise is that answer's outcome; this process goes on.
            _say({"failed": type(error).__name__})


def _die_with_parent() -> None:
    """Ask the kernel (Linux) to end this process with its parent: an answer may keep it for ever, and then it never sees its input end."""
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit()


def _say(reply: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
