"""``ms4 eval audit`` on a store that a local judge graded: agreement with the check of numbers, and with itself."""

from __future__ import annotations

import pytest
from support.eval_client import arithmetic_tasks
from support.judges import judging
from support.lcr_data import accept_small_documents, small_questions, write_hub_copy

from ms4_evals.clients.base import SampleAnswer
from ms4_evals.progress import Progress
from ms4_evals.resources import Resources
from ms4_evals.runner import make_plans, run_evaluations
from ms4_evals.store.records import RunRecord
from ms4_evals.store.results import ResultStore
from ms4_evals.tasks.registry import build_tasks
from ms4_train.cli.main import main
from ms4_train.config import to_yaml
from ms4_train.config.evaluation import EvalRun


def ms4(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return caught.value.code or 0, captured.out, captured.err


class Saying:
    """Says the same to everybody."""

    def identity(self):
        return {"weights": "saying"}

    def versions(self):
        return {}

    def answer(self, requests, on_finish, on_progress):
        for request in requests:
            text = request.messages[-1]["content"]
            answer = "It is 16400000." if "76?" in text else "Answer 13" if "13?" in text else ""
            on_finish(request, SampleAnswer("", "", answer, False, "stop", 0.1))

    def close(self):
        """Nothing to let go of."""


@pytest.fixture
def graded(tmp_path, monkeypatch):
    accept_small_documents(monkeypatch)
    with judging() as judge:
        config = EvalRun.model_validate(
            {
                "recipe": "eval",
                "store": str(tmp_path / "r.sqlite"),
                "model": {"path": "none"},
                "judge": {"servers": [{"base_url": judge.url}]},
                "tasks": [{"task": "lcr", "path": str(write_hub_copy(tmp_path / "lcr", small_questions())), "questions": [13, 14, 76]}],
                "modes": {"none": {"temperature": 0.7, "max_tokens": 20}, "high": None},
            }
        )
        (tmp_path / "run.yaml").write_text(to_yaml(config))
        with Resources(judge=config.judge) as resources, ResultStore.open(config.store) as store:
            plans = make_plans(build_tasks(config.tasks, resources), config.modes)
            record = RunRecord("saying", {"weights": "saying"}, 0)
            run_evaluations(Saying(), store, plans, record, config=config.model_dump(mode="json"), progress=Progress())
        yield tmp_path


def test_agreement_replies_and_a_second_judgement(graded, capsys):
    code, out, err = ms4(capsys, "eval", "audit", graded / "r.sqlite", "--again", graded / "run.yaml", "--share", "1")
    assert (code, err) == (0, "")
    assert "6 answers judged" in out, "three samples of two questions; the empty answers went to no judge"
    assert "asked again, the judge says the same of 6 of 6: 100.0 %" in out


def test_what_no_judge_graded_is_refused(tmp_path, capsys):
    with ResultStore.open(tmp_path / "r.sqlite") as store:
        plans = make_plans(arithmetic_tasks(), EvalRun.model_fields["modes"].default)
        store.register(RunRecord("plain", {}, 0), {}, {}, [plan.evaluation for plan in plans])
    code, _, err = ms4(capsys, "eval", "audit", tmp_path / "r.sqlite")
    assert code == 2
    assert "no judge" in err
