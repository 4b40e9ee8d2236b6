"""Identities are hashes of what a store says of an evaluation: whoever edits that is found out."""

import shutil
import sqlite3

import pytest
from support.eval_client import RuleClient, arithmetic_tasks, both_modes, shared_second_opinion

from ms4_evals.progress import Progress
from ms4_evals.runner import make_plans, run_evaluations
from ms4_evals.store.records import RunRecord
from ms4_evals.store.results import ResultStore
from ms4_train.errors import EvaluationError

TASKS = arithmetic_tasks(problems=3, samples=2)
RECORD = RunRecord("rule", {"weights": "rule"}, 0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("identities") / "r.sqlite"
    with ResultStore.open(path) as store:
        plans = make_plans(TASKS, both_modes())
        run_evaluations(RuleClient(TASKS), store, plans, RECORD, config={}, progress=Progress(), second_opinion=shared_second_opinion())
    return path


def verify(path):
    with ResultStore.read(path) as store:
        return store.verify(RECORD.run_id)


def test_what_the_runner_wrote_adds_up(finished):
    assert verify(finished) == 2 * 2 * 3 * 2


EDITS = [
    ("a problem taken out", "DELETE FROM problems WHERE position = 2", "data, prompts or grader"),
    ("another right answer", "UPDATE problems SET gold = '1' WHERE position = 0", "data, prompts or grader"),
    ("another prompt", "UPDATE problems SET prompt_id = 'x' WHERE position = 0", "data, prompts or grader"),
    ("another order", "UPDATE problems SET position = 9 WHERE position = 0", "data, prompts or grader"),
    ("another grader", "UPDATE evaluations SET grader_id = 'livecodebench-strict/1.0'", "data, prompts or grader"),
    ("another task", "UPDATE evaluations SET task = 'aime_2025'", "data, prompts or grader"),
    ("another board", "UPDATE evaluations SET board_id = 'x'", "data, prompts or grader"),
    ("another grading", "UPDATE problems SET grading_id = 'x' WHERE position = 0", "the grading"),
    ("another temperature", "UPDATE evaluations SET sampling = replace(sampling, '0.7', '0.0')", "sampling"),
    ("the other mode", "UPDATE evaluations SET mode = 'high' WHERE mode = 'none'", "mode"),
]


@pytest.mark.parametrize(("statement", "part"), [edit[1:] for edit in EDITS], ids=[edit[0] for edit in EDITS])
def test_an_edit_of_what_a_score_is_of_is_noticed(finished, tmp_path, statement, part):
    path = tmp_path / "r.sqlite"
    shutil.copy(finished, path)
    connection = sqlite3.connect(path)
    assert connection.execute(statement).rowcount > 0
    connection.commit()
    connection.close()
    with pytest.raises(EvaluationError, match=part) as caught:
        verify(path)
    assert caught.value.file == str(path)
