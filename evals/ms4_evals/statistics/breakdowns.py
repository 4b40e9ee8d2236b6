"""Scores by what problems are (difficulty, platform, month, category, errata ...) and by how long the output was.

Exercise it: ``pytest tests/evals/ms4_evals/statistics/test_breakdowns.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ms4_evals.statistics.lengths import LENGTHS, mean_length
from ms4_evals.statistics.scores import Score, score
from ms4_evals.store.records import GradedSample, PlannedProblem

ERRATA = "errata"
"""The fact that names what is wrong with a problem; problems in order do not have it."""
ABSENT = "(none)"
OUTPUT_TOKENS = "output_tokens"
"""The breakdown by length of the output, which is of samples and not of problems."""

_MOST_VALUES = 60
_MOST_PLAIN_NUMBERS = 12
_MOST_BANDS = 8
_ORDERS: dict[str, tuple[str, ...]] = {"difficulty": ("easy", "medium", "hard")}


@dataclass(frozen=True)
class Slice:
    """The samples that share a value.

    Attributes:
        value: of the fact, or a band of values: ``hard``, ``2024-08``, ``80,000 to 89,999``.
        problems, samples: that the score is made of, errors left out.
        correct: samples.
        mean_chars, mean_tokens: of thinking and answer together.
    """

    value: str
    problems: int
    samples: int
    correct: int
    score: Score
    mean_chars: float
    mean_tokens: float


def breakdowns(
    problems: Sequence[PlannedProblem], samples_of: Mapping[str, Sequence[GradedSample]], confidence: float
) -> dict[str, tuple[Slice, ...]]:
    """The score by every fact that tells problems apart, and by length of the output.

    A fact with more than 60 different words is a name and not a group, and is passed over. Numbers are put into at most eight bands of a
    round width, once there are more than twelve different ones.

    Args:
        problems: that were planned.
        samples_of: by problem id, errors left out.
        confidence: of the intervals.
    """
    found: dict[str, tuple[Slice, ...]] = {}
    for name in sorted({name for problem in problems for name in problem.facts}):
        values = {problem.problem_id: _known(problem.facts.get(name)) for problem in problems}
        distinct = set(values.values())
        if len(distinct) < 2:
            continue
        if all(isinstance(value, int) for value in distinct if value is not None) and len(distinct) > _MOST_PLAIN_NUMBERS:
            label_of = _bands([value for value in distinct if isinstance(value, int)])
        elif len(distinct) <= _MOST_VALUES:
            label_of = _plain
        else:
            continue
        groups: dict[tuple[float, str], list[Sequence[GradedSample]]] = {}
        for problem_id, value in values.items():
            if samples := samples_of.get(problem_id):
                groups.setdefault(_sort_key(name, value, label_of(value)), []).append(samples)
        found[name] = tuple(_slice(label, group, confidence) for (_, label), group in sorted(groups.items()))
    by_length = _by_output_length(samples_of, confidence)
    return found | ({OUTPUT_TOKENS: by_length} if len(by_length) > 1 else {})


def errata_free(problems: Sequence[PlannedProblem]) -> set[str] | None:
    """Ids of the problems without errata; None where no problem has any."""
    flawed = {problem.problem_id for problem in problems if problem.facts.get(ERRATA)}
    return {problem.problem_id for problem in problems} - flawed if flawed else None


def _by_output_length(samples_of: Mapping[str, Sequence[GradedSample]], confidence: float) -> tuple[Slice, ...]:
    """Bands from one power of two to the next, each with the samples whose output is so long, still grouped by problem."""
    bands: dict[int, list[Sequence[GradedSample]]] = {}
    for samples in samples_of.values():
        by_band: dict[int, list[GradedSample]] = {}
        for sample in samples:
            by_band.setdefault((sample.thinking_tokens + sample.answer_tokens).bit_length(), []).append(sample)
        for band, group in by_band.items():
            bands.setdefault(band, []).append(group)
    return tuple(_slice(_power_label(band), group, confidence) for band, group in sorted(bands.items()))


def _power_label(bits: int) -> str:
    if bits <= 1:
        return str(bits)
    return f"{1 << bits - 1:,} to {(1 << bits) - 1:,}"


def _slice(label: str, groups: Sequence[Sequence[GradedSample]], confidence: float) -> Slice:
    samples = [sample for group in groups for sample in group]
    correct_ps = [[sample.verdict == "correct" for sample in group] for group in groups]
    chars, tokens = (mean_length(samples, LENGTHS[name]) for name in ("total_chars", "total_tokens"))
    assert chars is not None
    assert tokens is not None
    return Slice(label, len(groups), len(samples), sum(map(sum, correct_ps)), score(correct_ps, confidence), chars, tokens)


def _known(value: object) -> str | int | None:
    """A fact as it may stand in a store that somebody else wrote."""
    return value if isinstance(value, str | int) else None


def _plain(value: str | int | None) -> str:
    return ABSENT if value is None or value == "" else str(value)


def _bands(values: Sequence[int]) -> Callable[[str | int | None], str]:
    """Labels of bands of a width 1, 2 or 5 times a power of ten, the smallest that needs at most eight of them."""
    low, high = min(values), max(values)
    widths = (digit * 10**power for power in range(310) for digit in (1, 2, 5))
    width = next(width for width in widths if high // width - low // width < _MOST_BANDS)

    def label(value: str | int | None) -> str:
        if not isinstance(value, int):
            return ABSENT
        start = value // width * width
        return f"{start:,} to {start + width - 1:,}"

    return label


def _sort_key(name: str, value: str | int | None, label: str) -> tuple[float, str]:
    """Bands and numbers by size, difficulties from easy to hard, words by the alphabet, and those without the fact last."""
    if value is None or value == "":
        return (float("inf"), label)
    if isinstance(value, int):
        return (int(label.split(" ")[0].replace(",", "")), label)
    order = _ORDERS.get(name, ())
    return (order.index(value) if value in order else len(order), label)
