"""Reports as Markdown: every number that people look for, and tables that outside text cannot break."""

import pytest
from support.made_stores import PROGRAMS, failed_sample, made_evaluation, made_problems, made_run, write_store

from ms4_evals.graders.base import Grade
from ms4_evals.markdown import percent
from ms4_evals.report import build_report
from ms4_evals.report_text import headlines, to_markdown
from ms4_evals.store.records import RunRecord
from ms4_evals.store.results import ResultStore
from ms4_evals.token_counts import TOKENIZER_NAME

HOSTILE = "a\n## b | `c` <img src=x onerror=alert(1)> ![i](http://x)"


def facts(index):
    return {"difficulty": ["easy", "hard"][index % 2], "month": f"2024-0{1 + index % 3}"} | ({"errata": "bad-tests"} if index == 5 else {})


EVALUATIONS = [
    made_evaluation("code", mode, made_problems("code", 6, facts), 2, grader_id=PROGRAMS, second_grader="official")
    for mode in ("none", "high")
]


def code_rule(evaluation, problem, index):
    right = problem < (2 if evaluation.mode == "none" else 5) and not (index and problem == 1)
    values = {"cost": 0.25, "usage_tokens": 100 * (problem + 1), "answer_tokens": 2 ** (problem + 1)}
    grade = Grade("correct" if right else "wrong", "print(1)", details={"class": "pass" if right else "WA"}, opinion="correct")
    return values, grade


def report_of(path, evaluations, rule, *, run=None, allow_errors=False):
    write_store(path, {"made": rule}, evaluations)
    with ResultStore.read(path) as store:
        report = build_report(store, made_run(), evaluations, confidence=0.95, resamples=100, allow_errors=allow_errors)
    return report | ({"label": run.label, "model": dict(run.model)} if run else {})


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return report_of(tmp_path_factory.mktemp("report") / "r.sqlite", EVALUATIONS, code_rule)


def test_what_a_report_says(report):
    text = to_markdown(report)
    (task,) = report["tasks"]
    for phrase in (
        "CODE, 6 problems",
        "high - none",
        "95 % interval",
        "pass@k",
        "exact McNemar on the first sample of each problem: 3 only high, 0 only none, 2 both, 1 neither; p = 0.25",
        "exact sign-flip test",
        "failures by class, none: WA 9",
        f"counted anew with {TOKENIZER_NAME}",
        "tokens by the server",
        "score % without errata",
        "| difficulty |",
        "| month |",
        "| tokens of output |",
        "second grader (official), high: 100.0 %",
        "disagrees on 9",
        "cost",
        "0.25",
        "read `print(1)` (wrong, WA)",
    ):
        assert phrase in text, phrase
    for mode in task["modes"]:
        assert f"| {mode['mode']} | {percent(mode['score']['value'])} |" in text
        assert mode["column_id"][:12] in text
        for part in mode["breakdowns"]["month"]:
            assert (
                f"| {part['value']} | {mode['mode']} | {part['problems']} | {part['samples']} | {percent(part['score']['value'])} |" in text
            )
    assert f"{100 * task['high_minus_none']['value']:+.1f} points" in text
    assert "Not complete" not in text
    assert "cons@k" in text


def widths(text):
    """The numbers of cells of every table: one each, unless a table is broken."""
    tables, current = [], set()
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            current.add(line.replace("\\|", "").count("|"))
        elif current:
            tables.append(current)
            current = set()
    return tables


def test_every_table_is_whole(report):
    found = widths(to_markdown(report))
    assert len(found) >= 8
    assert all(len(counts) == 1 for counts in found)


@pytest.mark.parametrize("allow_errors", [False, True])
def test_an_incomplete_report_says_so_first(tmp_path, allow_errors):
    def rule(evaluation, problem, index):
        return failed_sample("server") if problem == 0 else code_rule(evaluation, problem, index)

    report = report_of(tmp_path / "r.sqlite", EVALUATIONS, rule, allow_errors=allow_errors)
    text = to_markdown(report)
    first = text.splitlines()[2]
    assert first.startswith("**Not complete: 4 of 24 samples")
    assert ("no score" in first) != allow_errors
    assert ("too high" in first) == allow_errors
    assert text.count("| 2 errors |") == 2
    assert text.count("| refused |") == (0 if allow_errors else 2)
    assert "errors by class, high: server 2" in text


def test_hostile_text_stays_where_it_is_put(tmp_path):
    """In labels, models, facts, golds, answers: every heading, table and image is ours."""
    problems = made_problems("code", 3, lambda i: {"category": HOSTILE if i else "plain"})
    evaluations = [made_evaluation("code", "high", problems, 1, grader_id=PROGRAMS, second_grader=HOSTILE)]

    def rule(evaluation, problem, index):
        return {"answer": HOSTILE}, Grade("wrong", HOSTILE, details={"class": HOSTILE}, opinion="correct")

    text = to_markdown(report_of(tmp_path / "r.sqlite", evaluations, rule, run=RunRecord(HOSTILE, {HOSTILE: HOSTILE}, 0)))
    lines = text.splitlines()
    assert lines[0] == "# a ## b \\| 'c' &lt;img src=x onerror=alert(1)> !\\[i](http://x)"
    assert [line for line in lines if line.startswith("#")] == [lines[0], "## CODE, 3 problems", "## Run"]
    assert all(len(counts) == 1 for counts in widths(text))
    outside_code = "".join(part for line in lines for part in line.split("`")[::2])
    assert "<img" not in outside_code
    assert "![" not in outside_code


def test_headlines_for_a_terminal(report, tmp_path):
    lines = headlines(report)
    assert lines[0] == "CODE, 6 problems"
    assert [line.split()[0] for line in lines[1:]] == ["none", "high", "high"]
    assert f"{percent(report['tasks'][0]['modes'][1]['score']['value'])} %" in lines[2]
    assert "points" in lines[3]
    verdicts = report["tasks"][0]["modes"][1]["verdicts"]
    unanswered = report["tasks"][0]["modes"][1] | {"verdicts": verdicts | {"truncated": 2, "no-answer": 1}}
    changed = headlines(report | {"tasks": [report["tasks"][0] | {"modes": [unanswered]}]})
    assert changed[1].endswith("; 2 cut off, 1 no answer of 12 samples")

    def rule(evaluation, problem, index):
        return failed_sample("server") if problem == 0 else code_rule(evaluation, problem, index)

    refused = headlines(report_of(tmp_path / "a.sqlite", EVALUATIONS, rule))
    assert refused[1:] == ["  none  no score: 2 errors of 12 samples", "  high  no score: 2 errors of 12 samples"]
    allowed = headlines(report_of(tmp_path / "b.sqlite", EVALUATIONS, rule, allow_errors=True))
    assert all(line.endswith("left out: 2 errors of 12 samples") for line in allowed[1:3])
    assert "\x1b" not in "".join(headlines(report | {"tasks": [report["tasks"][0] | {"title": "\x1b[31m"}]}))
