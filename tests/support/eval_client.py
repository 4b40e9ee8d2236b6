"""A client of the evaluation that answers by a rule instead of a model, and the small pieces its tests share."""

from __future__ import annotations

import atexit
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ms4_evals.clients.base import SampleAnswer, SampleRequest
from ms4_evals.graders.second_opinion import SecondOpinion
from ms4_evals.identity import content_hash
from ms4_evals.tasks.registry import build_tasks
from ms4_train.config.evaluation import ArithmeticTask, ModesSection


class RuleClient:
    """Answers from the task's own gold answers: in ``high`` right with a written thought, in ``none`` right for one seed in five.

    Args:
        tasks: whose problems it may be asked.
        seconds: to wait per answer.
        fail: says which requests end in an error.
        stop_after: raise KeyboardInterrupt after so many answers.
    """

    def __init__(
        self,
        tasks: Sequence[Any],
        *,
        seconds: float = 0.0,
        fail: Callable[[SampleRequest], bool] = lambda request: False,
        stop_after: int | None = None,
        name: str = "rule",
    ) -> None:
        self._golds = {problem.problem_id: problem.gold for task in tasks for problem in task.problems}
        self._seconds = seconds
        self._fail = fail
        self._stop_after = stop_after
        self._name = name
        self.asked: list[SampleRequest] = []

    def identity(self) -> Mapping[str, Any]:
        return {"weights": self._name}

    def versions(self) -> Mapping[str, str]:
        return {"rule": "1"}

    def answer(
        self,
        requests: Sequence[SampleRequest],
        on_finish: Callable[[SampleRequest, SampleAnswer], None],
        on_progress: Callable[[int], None],
    ) -> None:
        for number, request in enumerate(requests):
            if number == self._stop_after:
                raise KeyboardInterrupt
            time.sleep(self._seconds)
            self.asked.append(request)
            on_finish(request, self._answer(request))
            on_progress(10 * number)

    def close(self) -> None:
        """Nothing to let go of."""

    def _answer(self, request: SampleRequest) -> SampleAnswer:
        prompt_hash = content_hash(list(request.messages))
        if self._fail(request):
            return SampleAnswer(prompt_hash, "", "", False, "", 0.1, error="no connection", error_class="connection")
        gold = self._golds[request.problem_id]
        thinking = f"the value is {gold}" * (1 + request.seed % 3) if request.mode == "high" else ""
        right = request.mode == "high" or request.seed % 5 == 0
        answer = f"\\boxed{{{gold if right else int(gold) + 1}}}"
        return SampleAnswer(prompt_hash, thinking, answer, False, "stop", time.perf_counter(), usage_tokens=len(thinking) // 2 + 4)


@functools.cache
def shared_second_opinion() -> SecondOpinion:
    """One math-verify process for all tests of this process; starting it takes seconds."""
    second = SecondOpinion()
    atexit.register(second.close)
    return second


def arithmetic_tasks(problems: int = 8, samples: int = 2, kind: str = "digits"):
    return build_tasks([ArithmeticTask(task="arithmetic", kind=kind, problems=problems, samples=samples)])


def both_modes() -> ModesSection:
    return ModesSection.model_validate({"none": {"max_tokens": 16}, "high": {"max_tokens": 64}})
