"""Stores as real evaluations leave them, written quickly, and sites made of them: for the tests of the leaderboard and its benchmark.

Answers come from a seeded generator; verdicts are those of rules with a chance of their own per model, mode and problem, so that scores,
lengths and breakdowns look like those of models and are the same on every machine.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ms4_evals.graders.base import Grade
from ms4_evals.identity import content_hash
from ms4_evals.runner import make_plans
from ms4_evals.store.records import Evaluation, PlannedProblem, RunRecord, Sample
from ms4_evals.store.results import ResultStore
from ms4_evals.tasks.base import QuestionTask, TaskProblem
from ms4_train.config.eval_tasks import ModesSection

WORDS = (
    *("consider", "the", "remainder", "of", "each", "term", "so", "that", "we", "may", "sum", "over", "all", "pairs", "then", "check"),
    *("whether", "this", "bound", "is", "sharp", "wait", "no", "because", "second", "case", "has", "been", "counted", "twice", "let"),
    *("us", "try", "again", "with", "a", "smaller", "example", "and", "see", "what", "happens", "for", "three", "five", "seven"),
)
MODES = ModesSection.model_validate({"none": {"max_tokens": 16384}, "high": {"max_tokens": 65536}})


SIZES = {"aime": (2, 12), "code": (2, 24), "documents": (1, 6)}
"""Samples and problems per task of the site that the browser's tests share."""


@dataclass(frozen=True)
class StubGrader:
    """Only its names are used: verdicts are written into the store directly."""

    grader_id: str
    second_grader: str = ""
    is_instant: bool = True

    def grade(self, problem: TaskProblem, answer: str, *, is_truncated: bool) -> Grade:
        raise AssertionError("no answer is graded here")


@dataclass(frozen=True)
class Model:
    """A model that there is not: skill in [0, 1] per mode, and how long it thinks and answers, in characters."""

    label: str
    skills: tuple[float, float]
    thinking: float
    answer: float = 600.0


MODELS = (
    Model("model A, tuned (LoRA 32)", (0.42, 0.83), 9000),
    Model("model A", (0.38, 0.78), 12000),
    Model("model A, NVFP4", (0.36, 0.75), 12500),
    Model("model B, 120B", (0.35, 0.82), 31000, 900),
    Model("model C (2 layers)", (0.04, 0.07), 2500, 300),
)


def aime_task(samples: int = 4, problems: int = 30) -> QuestionTask:
    """Shaped like AIME 2025."""
    made = tuple(
        TaskProblem(f"aime_2025/{number:02d}", f"Find the remainder when ${number}^{{2025}}$ is divided by 1000.", str(37 * number % 1000))
        for number in range(1, problems + 1)
    )
    return QuestionTask("aime_2025", "AIME 2025", samples, made, StubGrader("integer-box/1.0", "math-verify"), "Box it.")


def code_task(samples: int = 2, problems: int = 60, grader: str = "livecodebench-strict/1.0") -> QuestionTask:
    """Shaped like a window of LiveCodeBench."""
    names = ("easy", "medium", "hard")
    made = tuple(
        TaskProblem(
            f"livecodebench/abc{300 + number}_{'abcdefg'[number % 7]}",
            f"You are given an integer N.\nPrint the number of pairs (i, j) with i*j <= N + {number}.",
            content_hash(["tests", number]),
            {"difficulty": names[number % 3], "platform": ("atcoder", "leetcode")[number % 2], "month": f"2024-{8 + number % 5:02d}"}
            | ({"errata": "multi-answer"} if number % 20 == 7 else {}),
        )
        for number in range(problems)
    )
    return QuestionTask(
        "livecodebench_v6_aa",
        f"LiveCodeBench v6, AA window, {problems} problems",
        samples,
        made,
        StubGrader(grader, "livecodebench-official"),
    )


def documents_task(samples: int = 3, problems: int = 20) -> QuestionTask:
    """Shaped like AA-LCR."""
    categories = ("Company Reports", "Academia", "Legal", "Government")
    made = tuple(
        TaskProblem(
            f"lcr_1.0/{number:03d}",
            f"In which of the reports does the margin of segment {number} change its sign?",
            f"The report of {1990 + number}",
            {"category": categories[number % 4], "input_tokens": 72_000 + 2111 * number},
        )
        for number in range(1, problems + 1)
    )
    return QuestionTask("lcr_1.0", f"AA-LCR 1.0, {problems} questions", samples, made, StubGrader("lcr-judge/1.0 (local)", "numeric/1.0"))


def three_tasks() -> list[QuestionTask]:
    """One of each kind, small."""
    return [aime_task(), code_task(), documents_task()]


def fill_store(path: Path, tasks: Sequence[QuestionTask], models: Sequence[Model] = MODELS, *, scale: float = 1.0) -> None:
    """Write a store with every sample of the tasks for every model in both modes.

    Args:
        path: a new file.
        tasks: what was asked.
        models: who answered.
        scale: of all lengths.
    """
    with ResultStore.open(path) as store:
        # Thousands of commits need not reach the disk one by one here.
        store._connection.execute("PRAGMA synchronous = OFF")
        for model in models:
            run = RunRecord(model.label, {"weights": f"sha256-of-{model.label}", "number_format": "bf16", "engine": "ms4"}, 0)
            plans = make_plans(tasks, MODES)
            evaluations = [plan.evaluation for plan in plans]
            store.register(run, {"recipe": "eval"}, {"ms4-train": "0.1.0", "torch": "2.13.0"}, evaluations)
            for evaluation in evaluations:
                for sample, planned, grade in _samples(model, evaluation, scale):
                    store.add(run.run_id, sample, grade, planned.grading_id)


def _samples(model: Model, evaluation: Evaluation, scale: float) -> Iterator[tuple[Sample, PlannedProblem, Grade]]:
    rng = random.Random(f"{model.label} {evaluation.task} {evaluation.mode}")
    is_high = evaluation.mode == "high"
    for planned in evaluation.problems:
        hardness = random.Random(planned.problem_id).gauss(0, 0.25) + {"easy": -0.25, "hard": 0.3}.get(
            str(planned.facts.get("difficulty")), 0
        )
        chance = min(0.98, max(0.01, model.skills[is_high] - hardness))
        for index in range(evaluation.samples):
            thinking = (
                some_text(rng, int(scale * model.thinking * rng.lognormvariate(-0.15, 0.55) * (1 + max(0, hardness)))) if is_high else ""
            )
            yield _sample(rng, model, evaluation, planned, index, thinking, rng.random() < chance, scale)


def _sample(
    rng: random.Random,
    model: Model,
    evaluation: Evaluation,
    planned: PlannedProblem,
    index: int,
    thinking: str,
    is_right: bool,
    scale: float,
) -> tuple[Sample, PlannedProblem, Grade]:
    is_cut = not is_right and rng.random() < 0.12
    prose = some_text(rng, int(scale * model.answer * rng.lognormvariate(0, 0.4)))
    answer, grade = _answer(rng, evaluation, planned, prose, is_right, is_cut)
    sample = Sample(
        problem_id=planned.problem_id,
        prompt_id=planned.prompt_id,
        mode=evaluation.mode,
        sampling_id=evaluation.sampling_id,
        sample_index=index,
        seed=rng.getrandbits(63),
        prompt_hash=f"{rng.getrandbits(256):064x}",
        thinking=thinking,
        answer=answer,
        thinking_is_open=0,
        thinking_tokens=len(thinking) // 4,
        answer_tokens=len(answer) // 4,
        finish_reason="length" if is_cut else "stop",
        seconds=(len(thinking) + len(answer)) / 400 + 0.3,
        prompt_tokens=int(planned.facts.get("input_tokens", 180)),
        usage_tokens=(len(thinking) + len(answer)) // 4 + 3,
        cost=(len(thinking) + len(answer)) * 1.5e-7,
        endpoint="http://127.0.0.1:8000/v1",
        first_token_seconds=0.2,
    )
    return sample, planned, grade


def _answer(
    rng: random.Random, evaluation: Evaluation, planned: PlannedProblem, prose: str, is_right: bool, is_cut: bool
) -> tuple[str, Grade]:
    if is_cut:
        return prose, Grade("truncated", None)
    if evaluation.task.startswith("aime"):
        if not is_right and rng.random() < 0.2:
            return prose, Grade("no-answer", None, opinion="wrong")
        read = planned.gold if is_right else str(rng.randrange(1000))
        opinion = "wrong" if is_right and rng.random() < 0.02 else "correct" if is_right else "wrong"
        return f"{prose}\n\n\\boxed{{{read}}}", Grade("correct" if is_right else "wrong", read, opinion=opinion)
    if evaluation.task.startswith("livecodebench"):
        code = f"n = int(input())\nprint(sum(n // i for i in range(1, n + {1 if is_right else 2})))\n"
        official = "correct" if is_right != (rng.random() < 0.03) else "wrong"
        details: dict[str, Any] = {"tests": 14, "passed": 14} if is_right else _failing_test(rng)
        return f"{prose}\n\n```python\n{code}```", Grade("correct" if is_right else "wrong", code, details, opinion=official)
    said = planned.gold if is_right else f"The report of {rng.randrange(1980, 2020)}"
    details = {"judge": "CORRECT" if is_right else "INCORRECT", "judge_model": "local", "judge_seconds": 0.4}
    return f"{prose}\n\n{said}.", Grade("correct" if is_right else "wrong", said, details)


def _failing_test(rng: random.Random) -> dict[str, Any]:
    kind = rng.choice(("WA", "WA", "TLE", "RE"))
    return {
        "class": kind,
        "test": rng.randrange(14),
        "input": "5 3\n1 2 3 4 5\n2 2 2",
        "expected": "1\n2\n3",
        "output": "1\n2\n4",
        "seconds": round(6.0 if kind == "TLE" else rng.random(), 3),
    }


def some_text(rng: random.Random, characters: int) -> str:
    """Sentences of about so many characters."""
    if characters <= 0:
        return ""
    sentences: list[str] = []
    left = characters
    while left > 0:
        sentence = " ".join(rng.choices(WORDS, k=14)) + ".\n"
        sentences.append(sentence)
        left -= len(sentence)
    return "".join(sentences)[:characters]


def with_texts(task: QuestionTask, text: str) -> QuestionTask:
    """The task with every question and title replaced by ``text``."""
    problems = tuple(dataclasses.replace(problem, question=text, gold=text) for problem in task.problems)
    return dataclasses.replace(task, title=text, problems=problems)
