"""Scores that others published, to be shown apart from measured ones: other prompts, other samples, often other versions of the data.

Only numbers with a source are here, and a length only where one was published. They never share a table, a column or a front with what
was measured. Exercise it: ``pytest tests/evals/ms4_evals/leaderboard/test_published.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

_ANNOUNCEMENT = "Mistral, announcement of Mistral Small 4 (March 2026), bar chart"
_CARD = "Mistral, model card and announcement of Mistral Small 4 (March 2026), text beside the chart of score against output length"
_ANALYSIS = "Artificial Analysis, by way of its data interface"
_LCR_ANNOUNCEMENT = "Artificial Analysis, announcement of AA-LCR (August 2025)"
_UNSTATED = "prompt, sampling and number of samples are not stated"


@dataclass(frozen=True)
class PublishedScore:
    """One published number.

    Attributes:
        family: the tasks it is shown beside: those whose name is it or begins with it.
        model: whose score.
        mode: as its publisher calls it.
        score: in percent.
        characters: mean length of the output, where that was published.
        source: who said it, where.
        note: what a reader must know before comparing.
    """

    family: str
    model: str
    mode: str
    score: float
    source: str
    note: str
    characters: float | None = None


def _chart(model: str, lcr: float, aime: float, livecodebench: float) -> list[PublishedScore]:
    rows = (("lcr", lcr, "version of the data"), ("aime_2025", aime, "number of runs"), ("livecodebench", livecodebench, "window"))
    return [
        PublishedScore(family, model, "high", score, _ANNOUNCEMENT, f"{what} and prompt are not stated") for family, score, what in rows
    ]


PUBLISHED: tuple[PublishedScore, ...] = (
    *_chart("Mistral Small 4", 71.2, 83.8, 63.6),
    *_chart("Magistral Medium 1.2", 73.0, 84.4, 66.1),
    *_chart("Magistral Small 1.2", 27.0, 80.2, 60.7),
    PublishedScore(
        "lcr",
        "Mistral Small 4 (text)",
        "high",
        72.0,
        _CARD,
        "given as 0.72 with 1.6 thousand characters; whether thinking is counted is not stated; the bar chart says 71.2",
        characters=1600.0,
    ),
    PublishedScore("aime_2025", "gpt-oss-120b", "high", 92.5, "OpenAI, model card of gpt-oss", "without tools"),
    PublishedScore("aime_2025", "gpt-oss-120b (AA)", "high", 93.4, _ANALYSIS, _UNSTATED),
    PublishedScore("aime_2025", "gpt-oss-120b (AA)", "low", 66.7, _ANALYSIS, _UNSTATED),
    PublishedScore("livecodebench", "gpt-oss-120b (AA)", "high", 87.8, _ANALYSIS, "window of July to December 2024, 315 problems"),
    PublishedScore("livecodebench", "gpt-oss-120b (AA)", "low", 70.7, _ANALYSIS, "window of July to December 2024, 315 problems"),
    PublishedScore("lcr_1.0", "o3", "default", 69.0, _LCR_ANNOUNCEMENT, "version 1.0"),
    PublishedScore("lcr_1.0", "Grok 4", "default", 68.0, _LCR_ANNOUNCEMENT, "version 1.0"),
    PublishedScore(
        "lcr_1.0",
        "Qwen3 235B 2507 (thinking)",
        "thinking",
        67.0,
        "Artificial Analysis, announcement of AA-LCR (August 2025)",
        "version 1.0",
    ),
)


def published_for(task: str) -> tuple[PublishedScore, ...]:
    """What is shown beside a task, the best first."""
    found = [item for item in PUBLISHED if task == item.family or task.startswith((item.family + "_", item.family + "/"))]
    return tuple(sorted(found, key=lambda item: -item.score))
