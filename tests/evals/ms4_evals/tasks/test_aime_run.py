r"""The AIME task from end to end on the 60 real problems, with a client that answers in every form that is known to mislead graders."""

import pytest
from support.eval_client import RuleClient, both_modes, shared_second_opinion

from ms4_evals.clients.base import SampleAnswer
from ms4_evals.progress import Progress
from ms4_evals.report import build_report
from ms4_evals.report_text import to_markdown
from ms4_evals.runner import make_plans, run_evaluations
from ms4_evals.store.records import RunRecord
from ms4_evals.store.results import ResultStore
from ms4_evals.tasks.registry import build_tasks
from ms4_train.config.evaluation import AimeTask

# (thinking, final answer, verdict, math-verify's opinion); %s is the gold answer. math-verify cannot read residues and reads prose.
FORMS = [
    ("", r"\boxed{%s}", "correct", "correct"),
    ("", r"\boxed{0%s}", "correct", "correct"),
    ("", r"\boxed{%s.0}", "correct", "correct"),
    ("", r"\boxed{%s^\circ}", "correct", "correct"),
    ("", r"\boxed{\text{%s}}", "correct", "correct"),
    ("", r"\boxed{m+n=%s}", "correct", "correct"),
    (r"\boxed{1}", r"First $\boxed{1}$. No: the answer is $\boxed{%s}$.", "correct", "correct"),
    ("", r"\boxed{%s \pmod{1000}}", "correct", "wrong"),
    ("", r"\boxed{x=1, y=%s}", "wrong", "wrong"),
    ("", r"\boxed{%s.5}", "wrong", "wrong"),
    (r"I find \boxed{%s}", "It follows from the above.", "no-answer", "wrong"),
    ("", r"The answer is %s.", "no-answer", "correct"),
    (r"I find \boxed{%s}, let me check", "", "truncated", "wrong"),
    ("", r"\boxed{%s", "no-answer", None),
]


class FormsClient(RuleClient):
    """Answers problem number n in form n, modulo the number of forms."""

    def _answer(self, request):
        thinking, answer, verdict, _ = FORMS[form_of(request.problem_id)]
        gold = self._golds[request.problem_id]
        reason = "length" if verdict == "truncated" else "stop"
        return SampleAnswer("h", thinking.replace("%s", gold), answer.replace("%s", gold), reason == "length", reason, 0.0)


def form_of(problem_id):
    year, _, number = problem_id.partition("/")
    return (int(number) - 1 + 30 * (year == "aime_2025")) % len(FORMS)


@pytest.mark.data
def test_sixty_problems_in_every_form(data_folder, tmp_path):
    tasks = build_tasks([AimeTask(task="aime", years=[2024, 2025], path=str(data_folder / "aime"), samples=1)])
    client = FormsClient(tasks)
    plans = make_plans(tasks, both_modes())
    run = RunRecord("forms", client.identity(), 0)
    with ResultStore.open(tmp_path / "r.sqlite") as store:
        run_evaluations(client, store, plans, run, config={}, progress=Progress(), second_opinion=shared_second_opinion())
        evaluations = [plan.evaluation for plan in plans]
        samples = [sample for evaluation in evaluations for sample in store.graded_samples(run.run_id, evaluation)]
        report = build_report(store, run, evaluations, confidence=0.95, resamples=100)
    assert len(samples) == 120
    for sample in samples:
        _, answer, verdict, opinion = FORMS[form_of(sample.problem_id)]
        assert sample.verdict == verdict, answer
        assert opinion is None or sample.opinion == opinion, answer
    disputed = [item for task in report["tasks"] for mode in task["modes"] for item in mode["disagreements"]]
    assert {FORMS[form_of(item["problem"])][2] for item in disputed} >= {"correct", "no-answer"}
    assert len(disputed) == sum(mode["second_opinion"]["disagree"] for task in report["tasks"] for mode in task["modes"])
    text = to_markdown(report)
    assert all(item["problem"] in text for item in disputed)
