"""Summaries and comparisons as JSON values, numbers rounded.

Exercise it: ``pytest tests/evals/ms4_evals/test_report_values.py``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ms4_evals.statistics.pairs import Pairing
from ms4_evals.statistics.summary import Summary, headline_score
from ms4_evals.store.records import GradedSample
from ms4_evals.store.results import ResultStore

_DIGITS = 6
_LISTED_DISAGREEMENTS = 50
_EXCERPT_CHARACTERS = 200


def summary_values(summary: Summary, store: ResultStore | None = None, *, allow_errors: bool = False) -> dict[str, Any]:
    """A summary as JSON values, numbers rounded (``rounded``).

    Without a headline score (``headline_score``) there is none in parts either: no pass@k, breakdown or second score.

    Args:
        summary: of one task in one mode.
        store: where the ends of disputed answers, and what graders noted of them, are read from; None leaves them out.
        allow_errors: give scores of an evaluation that is not complete.
    """
    evaluation = summary.evaluation
    score = headline_score(summary, allow_errors=allow_errors)
    scored = score is not None
    return rounded(
        {
            "mode": evaluation.mode,
            "column_id": evaluation.column_id,
            "sampling": dict(evaluation.sampling),
            "samples_per_problem": evaluation.samples,
            "planned": evaluation.planned,
            "graded": summary.graded,
            "missing": summary.missing,
            "ungraded": summary.ungraded,
            "left_out": summary.left_out,
            "complete": summary.is_complete,
            "score": _values(score),
            "without_errata": _values(summary.without_errata) if scored else None,
            "verdicts": dict(summary.verdicts),
            "error_classes": dict(summary.error_classes),
            "failure_classes": dict(summary.failure_classes),
            "at_token_limit": summary.at_limit,
            "open_thinking": summary.open_thinking,
            "pass_at": {str(k): value for k, value in summary.pass_at.items()} if scored else {},
            "cons_at": {str(k): value for k, value in summary.cons_at.items()} if scored else {},
            "lengths": {name: {group: _values(value) for group, value in groups.items()} for name, groups in summary.lengths.items()},
            "breakdowns": {name: [_values(part) for part in parts] for name, parts in summary.breakdowns.items()} if scored else {},
            "second_grader": _values(summary.second) if scored else None,
            "second_opinion": dict(summary.opinions),
            "disagreements": [_disagreement(sample, store) for sample in summary.disagreements[:_LISTED_DISAGREEMENTS]],
            "cost": _values(summary.cost),
        }
    )


def pairing_values(pairing: Pairing) -> dict[str, Any]:
    """A paired comparison as JSON values: the difference, the exact tests, ratios of lengths."""
    return rounded(
        {
            **dataclasses.asdict(pairing.difference),
            "problems": pairing.problems,
            "mcnemar": _values(pairing.mcnemar),
            "sign_flip_p": pairing.sign_flip_p,
            "length_ratios": {name: dataclasses.asdict(ratio) for name, ratio in pairing.length_ratios.items()},
        }
    )


def rounded(value: Any) -> Any:
    """The same JSON values with every float rounded to six digits, those below a thousandth to four significant ones."""
    if isinstance(value, float):
        return round(value, _DIGITS) if abs(value) >= 1e-3 else float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return value


def _values(record: Any) -> dict[str, Any] | None:
    return None if record is None else dataclasses.asdict(record)


def _disagreement(sample: GradedSample, store: ResultStore | None) -> dict[str, Any]:
    values = {
        "problem": sample.problem_id,
        "sample": sample.sample_index,
        "gold": sample.gold[:_EXCERPT_CHARACTERS],
        "extracted": None if sample.extracted is None else sample.extracted[:_EXCERPT_CHARACTERS],
        "verdict": sample.verdict,
        "second_opinion": sample.opinion,
    }
    if store is not None:
        texts = store.texts(sample)
        noted = texts.details.get("class") if isinstance(texts.details, dict) else None
        values |= {
            "class": noted if isinstance(noted, str) else None,
            "end_of_answer": texts.answer[-_EXCERPT_CHARACTERS:],
        }
    return values
