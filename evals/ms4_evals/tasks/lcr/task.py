"""The task AA-LCR: 100 questions, each over a set of 2 to 24 documents of 71,691 to 114,563 tokens, compared with an official answer.

Versions 1.0 and 1.1 ask the same questions; 1.1 (September 2026) corrected 16 official answers and changed the judge and its prompt, so
their scores are not comparable. A question of 1.0 whose answer 1.1 corrected carries the fact ``errata``, so that scores can be given
without those.

The documents of a set are held once, 12 MB in all, however many questions ask over them, and a prompt is put together when it is sent. All
samples of a question, and then the next question of its set, are drawn together, because servers keep what they have just read.

Exercise it: ``pytest tests/evals/ms4_evals/tasks/lcr/test_task.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ms4_evals.graders.base import Grader
from ms4_evals.tasks.base import Message, TaskProblem
from ms4_evals.tasks.lcr.prompt import head, tail
from ms4_evals.tasks.lcr.published import CORRECTED_IN_1_1
from ms4_evals.tasks.lcr.questions import LcrQuestion
from ms4_evals.tasks.lcr.sources import load_data
from ms4_evals.tasks.lcr.tokens import TokenCheck, check_tokens
from ms4_train.config.eval_tasks import LcrTask
from ms4_train.errors import EvaluationError

ERRATA = "answer-corrected"


@dataclass(frozen=True)
class LongContextTask:
    """AA-LCR. Satisfies ``Task``.

    Attributes:
        origin: where the data came from, for people.
        token_check: how the prompts were compared with the published counts.
    """

    name: str
    title: str
    samples: int
    problems: tuple[TaskProblem, ...]
    grader: Grader
    origin: str
    token_check: TokenCheck
    questions: Mapping[str, LcrQuestion] = field(repr=False)
    groups_samples: bool = True

    @property
    def notes(self) -> tuple[str, ...]:
        """For people: where the data came from, what was done to them, how they were checked, and how much context they need."""
        check = self.token_check
        mended = sum(question.is_mended for question in self.questions.values())
        agree = "agree to the token with" if check.is_exact else "fit"
        return (
            f"data: {self.origin}" + (f"; {mended} garbled question texts mended" if mended else ""),
            f"{check.prompts} prompts {agree} the published counts ({check.tokenizer}); the longest has {check.longest:,} tokens",
        )

    def messages(self, problem: TaskProblem) -> list[Message]:
        """One user message: the documents, then the question."""
        question = self.questions[problem.problem_id]
        return [{"role": "user", "content": head(question.documents) + tail(question.question)}]


def lcr_task(section: LcrTask, grader: Grader) -> LongContextTask:
    """The task that a configuration names.

    Args:
        section: version, where the data are, which questions.
        grader: of its answers; the judge's prompt must be of the same version.

    Raises:
        EvaluationError: data that are missing or not the published ones, or no such question.
        MissingDependencyError: the hub cannot be reached.
    """
    data = load_data(section.version, section.path)
    chosen, which = _chosen(section, data.questions)
    questions = {f"lcr_{section.version}/{question.number:03d}": question for question in chosen}
    return LongContextTask(
        name=f"lcr_{section.version}",
        title=f"AA-LCR {section.version}{which}",
        samples=section.samples,
        problems=tuple(_problem(name, question, section.version) for name, question in questions.items()),
        grader=grader,
        origin=data.origin,
        token_check=check_tokens(chosen),
        questions=questions,
    )


def _chosen(section: LcrTask, questions: tuple[LcrQuestion, ...]) -> tuple[tuple[LcrQuestion, ...], str]:
    chosen, which = questions, ""
    if section.questions is not None:
        wanted = sorted(set(section.questions))
        there = {question.number: question for question in questions}
        missing = [number for number in wanted if number not in there]
        if missing or not wanted:
            named = f"there is no question {missing[0]}" if missing else "no question is named"
            raise EvaluationError(f"{named}; they have the numbers 1 to {len(questions)}.", key="questions", fix="correct the list.")
        chosen = tuple(there[number] for number in wanted)
        which = f", {len(chosen)} chosen of {len(questions)} questions"
    if section.limit is not None and section.limit < len(chosen):
        which += f", first {section.limit} of {len(chosen)} questions"
        chosen = chosen[: section.limit]
    return chosen, which


def _problem(problem_id: str, question: LcrQuestion, version: str) -> TaskProblem:
    facts: dict[str, str | int] = {
        "category": question.category,
        "document_set": question.document_set,
        "documents": len(question.documents),
        "input_tokens": question.input_tokens,
    }
    if version == "1.0" and question.number in CORRECTED_IN_1_1:
        facts["errata"] = ERRATA
    return TaskProblem(problem_id, question.question, question.answer, facts)
