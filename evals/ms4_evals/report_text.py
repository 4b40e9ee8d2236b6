"""A report as Markdown, for people.

Exercise it: ``pytest tests/evals/ms4_evals/test_report_text.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ms4_evals.markdown import counted, in_code, in_table, interval, number, p_value, percent, points, table
from ms4_evals.outside_text import one_line
from ms4_evals.statistics.breakdowns import OUTPUT_TOKENS

__all__ = ["headlines", "in_table", "left_out_text", "pairing_lines", "percent", "to_markdown"]

LENGTH_ROWS = (
    ("thinking", "characters", "thinking_chars"),
    ("final answer", "characters", "answer_chars"),
    ("both", "characters", "total_chars"),
    ("thinking", "tokens", "thinking_tokens"),
    ("final answer", "tokens", "answer_tokens"),
    ("both", "tokens", "total_tokens"),
    ("thinking", "tokens by the server", "usage_thinking_tokens"),
    ("both", "tokens by the server", "usage_tokens"),
    ("prompt", "tokens by the server", "prompt_tokens"),
)

_METHODS = {
    "bootstrap": "bootstrap over problems",
    "wilson": "all problems differ alike, so from the intervals of both scores",
}
_RATIOS = {"total_chars": "the characters", "total_tokens": "the tokens", "answer_chars": "the characters of the final answer"}


def to_markdown(report: dict[str, Any], *, images: Mapping[str, str] | None = None) -> str:
    """The report as Markdown: scores, the paired difference, lengths, repeats, breakdowns, disagreements.

    Args:
        report: from ``build_report``.
        images: file names beside the report, by name.
    """
    lines = [f"# {in_table(report['label'])}", ""]
    if not report["complete"]:
        lines += [_warning(report), ""]
    for task in report["tasks"]:
        lines += _task_lines(task, report["confidence"], report["token_counter"])
    lines += [line for name, file in (images or {}).items() for line in (f"![{name}]({file})", "")]
    lines += ["## Run", "", f"- run `{report['run_id'][:16]}`, seed {report['seed']}"]
    lines += [f"- {in_table(key)}: {in_code(str(value))}" for key, value in report["model"].items() if value is not None]
    lines += [
        "- versions: " + ", ".join(f"{in_table(name)} {in_table(str(version))}" for name, version in versions.items())
        for versions in report["versions"]
    ]
    return "\n".join(lines) + "\n"


def headlines(report: dict[str, Any]) -> list[str]:
    """One line per task, per mode of it, and per difference, for a terminal."""
    lines: list[str] = []
    for task in report["tasks"]:
        lines.append(one_line(task["title"]))
        for mode in task["modes"]:
            score, lengths = mode["score"], mode["lengths"]
            if score is None:
                lines.append(f"  {mode['mode']:4}  no score: {left_out_text(mode)} of {mode['planned']:,} samples")
                continue
            chars, tokens = lengths["total_chars"]["all"], lengths["total_tokens"]["all"]
            state = "" if mode["complete"] else f"; left out: {left_out_text(mode)} of {mode['planned']:,} samples"
            lines.append(
                f"  {mode['mode']:4}  {percent(score['value'])} %  ({interval(score)}), {chars['mean']:,.0f} characters,"
                f" {tokens['mean']:,.0f} tokens{_unanswered(mode)}{state}"
            )
        if difference := task["high_minus_none"]:
            lines.append(
                f"  high - none  {points(difference['value'])} points  ({points(difference['low'])} to {points(difference['high'])})"
            )
    return lines


def _unanswered(mode: dict[str, Any]) -> str:
    """``; 4 cut off, 2 no answer of 12 samples``: what a low score may be due to."""
    counts = {"cut off": mode["verdicts"]["truncated"], "no answer": mode["verdicts"]["no-answer"]}
    words = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    return f"; {words} of {mode['planned']:,} samples" if words else ""


def left_out_text(mode: dict[str, Any]) -> str:
    """``3 errors, 2 ungraded, 5 missing``."""
    counts = {"errors": mode["verdicts"]["error"], "ungraded": mode["ungraded"], "missing": mode["missing"]}
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


def _warning(report: dict[str, Any]) -> str:
    modes = [mode for task in report["tasks"] for mode in task["modes"]]
    left_out, planned = (sum(mode[key] for mode in modes) for key in ("left_out", "planned"))
    if report["allow_errors"]:
        return (
            f"**Not complete: {left_out:,} of {planned:,} samples are missing, ungraded or errors, and are left out of every score."
            " They are not a random part, so the scores may be too high.**"
        )
    return (
        f"**Not complete: {left_out:,} of {planned:,} samples are missing, ungraded or errors."
        " Tasks and modes with such samples have no score.**"
    )


def _task_lines(task: dict[str, Any], confidence: float, token_counter: str) -> list[str]:
    level = f"{100 * confidence:g} %"
    lines = [
        f"## {in_table(task['title'])}",
        "",
        f"board `{task['board_id'][:12]}`, grader {in_table(task['grader'])}, {task['problems']} problems",
        "",
        *(f"- sampling, {mode['mode']}: {_settings(mode['sampling'])}" for mode in task["modes"]),
        "",
    ]
    lines += table(
        ["mode", "score %", f"{level} interval", "SE (problems)", "SE (runs)", "samples per problem", "graded", "left out", "column"],
        [_score_row(mode) for mode in task["modes"]],
    )
    lines += table(
        ["mode", "correct", "wrong", "no answer", "truncated", "at token limit", "open thinking", "errors", "ungraded", "missing"],
        [_count_row(mode) for mode in task["modes"]],
    )
    lines += _class_lines(task)
    lines += _difference_lines(task["high_minus_none"], level)
    lines += _length_lines(task, token_counter)
    lines += table(
        ["mode", "k", "pass@k %", "cons@k %"],
        [
            [mode["mode"], k, percent(value), percent(mode["cons_at"].get(k))]
            for mode in task["modes"]
            for k, value in mode["pass_at"].items()
            if mode["samples_per_problem"] > 1
        ],
    )
    lines += _breakdown_lines(task, level)
    lines += table(
        ["mode", "cost", "per sample", "per correct answer", "samples with a price"],
        [
            [mode["mode"], *(_price(cost[key]) for key in ("total", "per_sample", "per_correct")), f"{cost['samples']:,}"]
            for mode in task["modes"]
            if (cost := mode["cost"])
        ],
    )
    return lines + _second_lines(task, level)


def _score_row(mode: dict[str, Any]) -> list[str]:
    score = mode["score"]
    numbers = ["refused", "-", "-", "-"]
    if score:
        numbers = [percent(score["value"]), interval(score), percent(score["standard_error"]), percent(score["standard_error_runs"])]
    counts = [f"{mode[key]:,}" for key in ("samples_per_problem", "graded")]
    return [mode["mode"], *numbers, *counts, left_out_text(mode) or "0", f"`{mode['column_id'][:12]}`"]


def _count_row(mode: dict[str, Any]) -> list[str]:
    verdicts = mode["verdicts"]
    counts = [*(verdicts[name] for name in ("correct", "wrong", "no-answer", "truncated")), mode["at_token_limit"], mode["open_thinking"]]
    return [mode["mode"], *(f"{count:,}" for count in (*counts, verdicts["error"], mode["ungraded"], mode["missing"]))]


def _class_lines(task: dict[str, Any]) -> list[str]:
    lines = [
        f"- {words}, {mode['mode']}: {counted(mode[key])}"
        for key, words in (("failure_classes", "failures by class"), ("error_classes", "errors by class"))
        for mode in task["modes"]
        if mode[key]
    ]
    return [*lines, ""] if lines else []


def _difference_lines(difference: dict[str, Any] | None, level: str) -> list[str]:
    if difference is None:
        return []
    lines = [
        f"high - none: **{points(difference['value'])} points**, {level} interval {points(difference['low'])} to"
        f" {points(difference['high'])} ({_METHODS[difference['method']]})",
        "",
    ]
    return lines + pairing_lines(difference, "high", "none")


def pairing_lines(pairing: dict[str, Any], first: str, second: str) -> list[str]:
    """The exact tests and the lengths of a comparison, in words. The two names are put in as they are."""
    lines: list[str] = []
    counts = pairing["mcnemar"]
    if counts:
        lines.append(
            f"- exact McNemar on the first sample of each problem: {counts['first_only']} only {first},"
            f" {counts['second_only']} only {second}, {counts['both']} both, {counts['neither']} neither;"
            f" p = {p_value(counts['p_value'])}"
        )
    if pairing["sign_flip_p"] is not None:
        lines.append(f"- exact sign-flip test on all samples, by problem: p = {p_value(pairing['sign_flip_p'])}")
    ratios = [
        f"{ratio['value']:.3g} times {words}" + ("" if ratio["low"] is None else f" ({ratio['low']:.3g} to {ratio['high']:.3g})")
        for name, words in _RATIOS.items()
        if (ratio := pairing["length_ratios"].get(name))
    ]
    if ratios:
        lines.append(f"- output of {first} over {second}: " + ", ".join(ratios))
    return [*lines, ""] if lines else []


def _settings(sampling: dict[str, Any]) -> str:
    return ", ".join(f"{in_table(name)} {value}" for name, value in sampling.items())


def _length_lines(task: dict[str, Any], token_counter: str) -> list[str]:
    header = ["length of", "in", "mode", "samples", "mean", "median", "90th percentile", "longest", "mean, correct", "mean, not correct"]
    rows = [
        _length_row(part, unit, mode["mode"], groups)
        for part, unit, name in LENGTH_ROWS
        for mode in task["modes"]
        if (groups := mode["lengths"][name])["all"]
    ]
    note = f"Tokens are of both texts, counted anew with {token_counter} for every model; tokens by the server are its own count."
    return [*table(header, rows), note, ""] if rows else []


def _length_row(part: str, unit: str, mode: str, groups: dict[str, Any]) -> list[str]:
    every = groups["all"]
    means = [number(groups[group]["mean"]) if groups[group] else "-" for group in ("correct", "not_correct")]
    numbers = [f"{every['count']:,}", number(every["mean"]), number(every["median"]), number(every["p90"], 0), number(every["maximum"], 0)]
    return [part, unit, mode, *numbers, *means]


def _breakdown_lines(task: dict[str, Any], level: str) -> list[str]:
    lines = table(
        ["mode", "score % without errata", f"{level} interval", "with errata"],
        [
            [mode["mode"], percent(mode["without_errata"]["value"]), interval(mode["without_errata"]), percent(mode["score"]["value"])]
            for mode in task["modes"]
            if mode["without_errata"]
        ],
    )
    names = list(dict.fromkeys(name for mode in task["modes"] for name in mode["breakdowns"]))
    for name in names:
        words = "tokens of output" if name == OUTPUT_TOKENS else in_table(name.replace("_", " "))
        rows = [
            [
                in_table(part["value"]),
                mode["mode"],
                f"{part['problems']:,}",
                f"{part['samples']:,}",
                percent(part["score"]["value"]),
                interval(part["score"]),
                number(part["mean_chars"], 0),
                number(part["mean_tokens"], 0),
            ]
            for mode in task["modes"]
            for part in mode["breakdowns"].get(name, [])
        ]
        lines += table([words, "mode", "problems", "samples", "score %", f"{level} interval", "characters", "tokens"], rows)
    return lines


def _second_lines(task: dict[str, Any], level: str) -> list[str]:
    lines: list[str] = []
    for mode in task["modes"]:
        counts, second = mode["second_opinion"], mode["second_grader"]
        if second:
            kappa = "" if second["kappa"] is None else f", kappa {second['kappa']:.3f}"
            lines.append(
                f"- second grader ({in_table(second['name'])}), {mode['mode']}: {percent(second['score']['value'])} % ({level} interval"
                f" {interval(second['score'])}) of {second['samples']:,} samples, on which the verdicts give"
                f" {percent(second['first_score']['value'])} %{kappa}"
            )
        if sum(counts.values()):
            lines.append(
                f"- second opinion, {mode['mode']}: agrees on {counts['agree']:,}, disagrees on {counts['disagree']:,},"
                f" failed on {counts['failed']:,}"
            )
        lines += [_disagreement_line(item) for item in mode["disagreements"]]
        if counts["disagree"] > len(mode["disagreements"]):
            lines.append(f"  - and {counts['disagree'] - len(mode['disagreements']):,} more")
    return [*lines, ""] if lines else []


def _disagreement_line(item: dict[str, Any]) -> str:
    noted = f", {item['class']}" if item.get("class") else ""
    read = "nothing" if item["extracted"] is None else in_code(item["extracted"])
    return (
        f"  - {in_table(item['problem'])}, sample {item['sample']}: gold {in_code(item['gold'])}, read {read}"
        f" ({item['verdict']}{in_table(noted)}), the second grader says {item['second_opinion']}"
    )


def _price(value: float | None) -> str:
    return "-" if value is None else f"{value:,.6g}"
