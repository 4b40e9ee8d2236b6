"""What graders need beside an answer: a sandbox for programs, a judge for prose. Opened when the first task asks, closed at the end.

Opening comes before drawing, so that a machine without a sandbox says so at once and not after a night of answers.
Exercise it: ``pytest tests/evals/ms4_evals/test_resources.py``.
"""

from __future__ import annotations

import contextlib
import os
from types import TracebackType
from typing import TYPE_CHECKING

from ms4_evals.graders.base import Grader
from ms4_train.config.endpoint import JudgeSection
from ms4_train.config.eval_tasks import SandboxSection
from ms4_train.errors import EvaluationError

if TYPE_CHECKING:
    from ms4_evals.graders.judge.prompts import JudgeVersion
    from ms4_evals.graders.livecodebench.problem import TestSource
    from ms4_evals.sandbox.base import Sandbox

_MOST_WORKERS = 16


class Resources:
    """Sandbox and judge of one evaluation; a context manager.

    Args:
        sandbox: how programs are run.
        judge: which model judges; None where the configuration names none.
    """

    def __init__(self, sandbox: SandboxSection | None = None, judge: JudgeSection | None = None) -> None:
        self._sandbox_section = sandbox or SandboxSection()
        self._judge_section = judge
        self._stack = contextlib.ExitStack()
        self._sandbox: Sandbox | None = None
        self._uses_judge = False

    def __enter__(self) -> Resources:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and self._sandbox is not None:
            # Nobody waits for the verdicts on what still runs, which may take minutes.
            self._sandbox.close()
        self.close()

    def close(self) -> None:
        """End the sandbox and the judge's connections."""
        self._stack.close()

    @property
    def workers(self) -> int:
        """Samples graded at once: programs by the number of processors, judgements by what the judge is given."""
        judgements = self._judge_section.workers if self._uses_judge and self._judge_section else 0
        return max(self._programs if self._sandbox is not None else 1, judgements)

    @property
    def _programs(self) -> int:
        return self._sandbox_section.workers or min(len(os.sched_getaffinity(0)), _MOST_WORKERS)

    def code_grader(self, tests: TestSource) -> Grader:
        """The grader of programs.

        Raises:
            EvaluationError: there is no sandbox here.
        """
        from ms4_evals.graders.livecodebench.grader import LiveCodeBenchGrader

        if self._sandbox is None:
            self._sandbox = self._stack.enter_context(self._open_sandbox())
        return self._stack.enter_context(LiveCodeBenchGrader(tests, self._sandbox, workers=self._programs))

    def _open_sandbox(self) -> Sandbox:
        """A real one wherever there is one: ``unsafe`` only says what to do where there is none."""
        from ms4_evals.sandbox.opening import open_sandbox

        try:
            return open_sandbox()
        except EvaluationError:
            if not self._sandbox_section.unsafe:
                raise
            return open_sandbox(unsafe=True)

    def judge_grader(self, version: JudgeVersion) -> Grader:
        """The grader that asks a judge.

        Raises:
            EvaluationError: no judge is configured, or it cannot be reached.
        """
        from ms4_evals.graders.judge.grader import JudgeGrader
        from ms4_evals.graders.judge.opening import open_judge

        if self._judge_section is None:
            raise EvaluationError(
                "lcr needs a judge.", key="judge", fix="add judge: {servers: [{base_url: ..., model: ...}]}; see configs/eval/lcr.yaml."
            )
        ask, name = self._stack.enter_context(open_judge(self._judge_section))
        self._uses_judge = True
        judge = self._judge_section
        return JudgeGrader(version, ask, name, max_tokens=judge.max_tokens)
