"""Reports as Markdown: every number that people look for, and tables that outside text cannot break."""

from support.eval_client import RuleClient, arithmetic_tasks, both_modes, shared_second_opinion

from ms4_evals.progress import Progress
from ms4_evals.report import build_report
from ms4_evals.report_text import in_table, percent, to_markdown
from ms4_evals.runner import make_plans, run_evaluations
from ms4_evals.store.records import RunRecord
from ms4_evals.store.results import ResultStore

TASKS = arithmetic_tasks(problems=5, samples=2)


def text_of(path, client, label="rule"):
    plans = make_plans(TASKS, both_modes())
    run = RunRecord(label, client.identity(), 0)
    with ResultStore.open(path) as store:
        run_evaluations(client, store, plans, run, config={}, progress=Progress(), second_opinion=shared_second_opinion())
        report = build_report(store, run, [plan.evaluation for plan in plans], confidence=0.95, resamples=100)
    return to_markdown(report), report


def test_what_a_report_says(tmp_path):
    text, report = text_of(tmp_path / "r.sqlite", RuleClient(TASKS))
    (task,) = report["tasks"]
    for phrase in (
        "Arithmetic, digits, 6 steps, 5 held-out problems",
        "high - none",
        "95 % interval",
        "pass@k",
        "cons@k",
        "second opinion",
    ):
        assert phrase in text
    for mode in task["modes"]:
        assert f"| {mode['mode']} | {percent(mode['score']['value'])} |" in text
        assert mode["column_id"][:12] in text
    assert f"{100 * task['high_minus_none']['value']:+.1f} points" in text
    assert "Not complete" not in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in tables if line.startswith("| thinking")}) == 1


def test_an_incomplete_report_says_so_first(tmp_path):
    text, _ = text_of(tmp_path / "r.sqlite", RuleClient(TASKS, fail=lambda request: request.sample_index == 0))
    assert text.splitlines()[2].startswith("**Not complete")


def test_a_hostile_label_stays_on_its_line(tmp_path):
    text, _ = text_of(tmp_path / "r.sqlite", RuleClient(TASKS), label="a\n## b | `c`")
    assert text.splitlines()[0] == "# a ## b \\| 'c'"


def test_helpers():
    assert percent(0.12345) == "12.3"
    assert in_table(" a\n\tb | `c`") == "a b \\| 'c'"
