"""The grader that asks a judge whether an answer agrees with the official one.

Empty answers and answers that hit their token limit are not shown to the judge: a judge that is shown nothing says CORRECT often enough to
lift a score (scitix/sieval pull request 44). A reply that is no verdict is asked for again under another seed, three times in all, and
counted; after that, as when the judge cannot be reached, the answer stays ungraded and is judged when the evaluation is started again: it
is neither counted as wrong nor left out of a mean. At temperature 0 a server may well give the same reply again.

Where the official answer is one quantity, a deterministic check gives a second opinion (``numeric``); it never changes a verdict.

Exercise it: ``pytest tests/evals/ms4_evals/graders/judge/test_grader.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ms4_evals.clients.base import SampleAnswer, SampleRequest
from ms4_evals.graders.base import MAX_EXTRACTED_CHARACTERS, Grade, GradingFailure
from ms4_evals.graders.judge.numeric import NUMERIC_GRADER, numeric_opinion
from ms4_evals.graders.judge.prompts import JUDGE_VERSIONS, JudgeVersion, addresses_judge, judge_messages, neutralised, prompt_hash
from ms4_evals.graders.judge.replies import read_verdict
from ms4_evals.identity import content_hash
from ms4_evals.tasks.base import TaskProblem
from ms4_train.errors import MS4Error

Ask = Callable[[SampleRequest], SampleAnswer]

RULES = "1"
"""Changes whenever the same replies could give another verdict."""
ATTEMPTS = 3
_SHOWN_CHARACTERS = 2_000


@dataclass(frozen=True)
class Judgement:
    """What a judge said of one answer.

    Attributes:
        reply: its words, clipped.
        attempts: how often it was asked.
        unparsable: how many replies were no verdict.
        prompt_tokens, usage_tokens, cost: of all attempts together; None where the server does not say.
    """

    verdict: Literal["correct", "wrong"]
    reply: str
    attempts: int
    unparsable: int
    prompt_tokens: int | None
    usage_tokens: int | None
    cost: float | None


class JudgeGrader:
    """Satisfies ``Grader``. Safe to call from several threads if ``ask`` is.

    Args:
        version: of the judge's prompt.
        ask: puts a request to the judge and waits for its answer.
        judge_name: which model judges, under which settings; part of the grader's identity.
        temperature: of the judge.
        max_tokens: of the judge's thinking and reply together.
        attempts: how often a judge is asked before its replies count as a failure.
    """

    second_grader = NUMERIC_GRADER
    is_instant = False

    def __init__(
        self,
        version: JudgeVersion,
        ask: Ask,
        judge_name: str,
        *,
        temperature: float = 0.0,
        max_tokens: int = 4096,
        attempts: int = ATTEMPTS,
    ) -> None:
        assert version in JUDGE_VERSIONS
        assert attempts >= 1
        self._version: JudgeVersion = version
        self._ask = ask
        self._judge_name = judge_name
        self._temperature = temperature
        self._max_tokens = max_tokens
        self._attempts = attempts

    @property
    def grader_id(self) -> str:
        """Version, judge, and a hash of the prompt: verdicts of different ones never share a column."""
        return f"lcr-judge/{self._version}.{RULES} {self._judge_name} prompt-{prompt_hash(self._version)}"

    def grade(self, problem: TaskProblem, answer: str, *, is_truncated: bool) -> Grade:
        """The judge's verdict on an answer.

        Raises:
            GradingFailure: the judge could not be asked, or said nothing that is a verdict.
        """
        if is_truncated:
            return Grade("truncated", answer[:MAX_EXTRACTED_CHARACTERS] if answer.strip() else None)
        if not answer.strip():
            return Grade("no-answer", None)
        judgement = self.judge(problem, answer)
        return Grade(
            judgement.verdict,
            answer[:MAX_EXTRACTED_CHARACTERS],
            details=self._details(judgement, answer),
            opinion=numeric_opinion(answer, problem.gold, problem.question),
        )

    def judge(self, problem: TaskProblem, answer: str, *, turn: int = 0) -> Judgement:
        """Ask the judge about an answer that is not empty.

        Args:
            problem: its question and official answer are shown.
            answer: to assess.
            turn: another turn asks the same thing under other seeds, to see whether the judge agrees with itself.

        Raises:
            GradingFailure: as ``grade``.
        """
        messages = judge_messages(self._version, problem.question, problem.gold, answer)
        answers: list[SampleAnswer] = []
        for attempt in range(self._attempts):
            reply = self._reply(problem.problem_id, messages, turn * self._attempts + attempt)
            answers.append(reply)
            verdict = None if reply.finish_reason == "length" else read_verdict(self._version, reply.answer)
            if verdict is not None:
                return Judgement(
                    verdict,
                    reply.answer[:_SHOWN_CHARACTERS],
                    attempts=attempt + 1,
                    unparsable=attempt,
                    prompt_tokens=_sum(item.prompt_tokens for item in answers),
                    usage_tokens=_sum(item.usage_tokens for item in answers),
                    cost=_sum(item.cost for item in answers),
                )
        last = answers[-1]
        end = " (cut off by max_tokens)" if last.finish_reason == "length" else ""
        raise GradingFailure(
            f"{problem.problem_id}: {self._attempts} replies of the judge were no verdict{end}, the last: {last.answer[:200]!r}"
        )

    def _reply(self, problem_id: str, messages: list[dict[str, str]], attempt: int) -> SampleAnswer:
        request = SampleRequest(
            problem_id=f"judge/{problem_id}",
            mode="none",
            sample_index=attempt,
            prompt=lambda: messages,
            temperature=self._temperature,
            top_p=1.0,
            max_tokens=self._max_tokens,
            # Decided by what is asked, so that a judgement can be repeated; two samples with one answer get one judgement.
            seed=int(content_hash(["judge", messages, attempt])[:16], 16) >> 1,
        )
        try:
            reply = self._ask(request)
        except MS4Error as error:
            raise GradingFailure(f"{problem_id}: the judge cannot be asked: {error}") from error
        if reply.error is not None:
            raise GradingFailure(f"{problem_id}: the judge gave no answer ({reply.error_class}): {reply.error}")
        return reply

    def _details(self, judgement: Judgement, answer: str) -> dict[str, Any]:
        details: dict[str, Any] = {
            "judge": self._judge_name,
            "reply": judgement.reply,
            "attempts": judgement.attempts,
            "unparsable": judgement.unparsable,
        }
        usage = {"prompt_tokens": judgement.prompt_tokens, "usage_tokens": judgement.usage_tokens, "cost": judgement.cost}
        details |= {f"judge_{name}": value for name, value in usage.items() if value is not None}
        if self._version != "1.0" and (count := neutralised(answer)[1]):
            details["neutralised_delimiters"] = count
        if addresses_judge(answer):
            details["addresses_judge"] = True
        return details


def _sum(values: Any) -> Any:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
