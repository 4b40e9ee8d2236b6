"""A report as Markdown, for people.

Exercise it: ``pytest tests/evals/ms4_evals/test_report_text.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ms4_evals.outside_text import one_line

_LENGTH_ROWS = (
    ("thinking", "characters", "thinking_chars"),
    ("final answer", "characters", "answer_chars"),
    ("both", "characters", "total_chars"),
    ("thinking", "tokens", "thinking_tokens"),
    ("final answer", "tokens", "answer_tokens"),
    ("both", "tokens", "total_tokens"),
)

_METHODS = {
    "bootstrap": "bootstrap over problems",
    "wilson": "all problems differ alike, so from the intervals of both scores",
}


def to_markdown(report: dict[str, Any]) -> str:
    """The report as Markdown: scores, the paired difference, lengths, repeats, disagreements."""
    lines = [f"# {in_table(report['label'])}", ""]
    if not report["complete"]:
        lines += ["**Not complete: samples are missing or ended in errors. Scores are of the graded samples only.**", ""]
    for task in report["tasks"]:
        lines += _task_lines(task, report["confidence"])
    lines += ["## Run", "", f"- run `{report['run_id'][:16]}`, seed {report['seed']}"]
    lines += [f"- {key}: `{in_table(str(value))}`" for key, value in report["model"].items() if value is not None]
    lines += ["- versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()) for versions in report["versions"]]
    return "\n".join(lines) + "\n"


def percent(share: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * share:.1f}"


def in_table(text: str) -> str:
    """Outside text made fit for a cell of a Markdown table."""
    return one_line(text).replace("|", "\\|").replace("`", "'")


def _task_lines(task: dict[str, Any], confidence: float) -> list[str]:
    lines = [
        f"## {in_table(task['title'])}",
        "",
        f"board `{task['board_id'][:12]}`, grader {task['grader']}, {task['problems']} problems",
        "",
    ]
    lines += _table(
        [
            "mode",
            "score %",
            f"{100 * confidence:g} % interval",
            "SE (problems)",
            "SE (runs)",
            "graded",
            "wrong",
            "no answer",
            "truncated",
            "at limit",
            "errors",
            "missing",
            "column",
        ],
        [_score_row(mode) for mode in task["modes"]],
    )
    difference = task["high_minus_none"]
    if difference:
        lines += [
            f"high - none: **{100 * difference['value']:+.1f} points**, {100 * confidence:g} % interval"
            f" {100 * difference['low']:+.1f} to {100 * difference['high']:+.1f} ({_METHODS[difference['method']]})",
            "",
        ]
    lines += _table(
        ["length of", "in", "mode", "mean", "median", "90th percentile", "longest", "mean, correct", "mean, not correct"],
        [_length_row(part, unit, name, mode) for part, unit, name in _LENGTH_ROWS for mode in task["modes"]],
    )
    if any(mode["samples_per_problem"] > 1 for mode in task["modes"]):
        lines += _table(
            ["mode", "k", "pass@k %", "cons@k %"],
            [
                [mode["mode"], k, percent(value), percent(mode["cons_at"][k])]
                for mode in task["modes"]
                for k, value in mode["pass_at"].items()
            ],
        )
    return lines + _opinion_lines(task)


def _score_row(mode: dict[str, Any]) -> list[str]:
    score, verdicts = mode["score"], mode["verdicts"]
    numbers = ["-"] * 4
    if score:
        interval = f"{percent(score['low'])} to {percent(score['high'])}"
        numbers = [percent(score["value"]), interval, _optional(score["standard_error"]), _optional(score["standard_error_runs"])]
    counts = [mode["graded"], verdicts["wrong"], verdicts["no-answer"], verdicts["truncated"], mode["at_token_limit"]]
    return [mode["mode"], *numbers, *map(str, counts), str(verdicts["error"]), str(mode["missing"]), f"`{mode['column_id'][:12]}`"]


def _length_row(part: str, unit: str, name: str, mode: dict[str, Any]) -> list[str]:
    groups = mode["lengths"][name]
    every = groups["all"]
    if every is None:
        return [part, unit, mode["mode"], *["-"] * 6]
    means = [f"{groups[group]['mean']:,.1f}" if groups[group] else "-" for group in ("correct", "not_correct")]
    return [
        part,
        unit,
        mode["mode"],
        f"{every['mean']:,.1f}",
        f"{every['median']:,.1f}",
        f"{every['p90']:,.0f}",
        f"{every['maximum']:,}",
        *means,
    ]


def _opinion_lines(task: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for mode in task["modes"]:
        counts = mode["second_opinion"]
        if sum(counts.values()):
            lines.append(
                f"- second opinion (math-verify), {mode['mode']}: agrees on {counts['agree']}, disagrees on {counts['disagree']},"
                f" failed on {counts['failed']}"
            )
        lines += [
            f"  - {item['problem']}, sample {item['sample']}: gold {item['gold']}, read `{in_table(str(item['extracted']))}`"
            f" ({item['verdict']}), math-verify says {item['second_opinion']}"
            for item in mode["disagreements"]
        ]
    return [*lines, ""] if lines else []


def _optional(share: float | None) -> str:
    return "-" if share is None else percent(share)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    marks = ["---"] + ["---:"] * (len(header) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (header, marks, *rows)] + [""]
