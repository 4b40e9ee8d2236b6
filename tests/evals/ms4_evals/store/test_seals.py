"""Seals: an edit of any column of a sample or a grade is noticed; what was written by the store is not complained about."""

import shutil
import sqlite3

import pytest
from support.eval_client import RuleClient, arithmetic_tasks, both_modes, shared_second_opinion

from ms4_evals.progress import Progress
from ms4_evals.runner import make_plans, run_evaluations
from ms4_evals.store.records import RunRecord
from ms4_evals.store.results import ResultStore
from ms4_evals.store.seals import GRADE_COLUMNS, SAMPLE_COLUMNS
from ms4_train.errors import EvaluationError

TASKS = arithmetic_tasks(problems=3, samples=2)
RECORD = RunRecord("rule", {"weights": "rule"}, 0)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """A finished store: samples, errors, grades, second opinions."""
    path = tmp_path_factory.mktemp("seals") / "r.sqlite"
    client = RuleClient(TASKS, fail=lambda request: request.sample_index == 1 and request.mode == "none")
    with ResultStore.open(path) as store:
        plans = make_plans(TASKS, both_modes())
        run_evaluations(client, store, plans, RECORD, config={}, progress=Progress(), second_opinion=shared_second_opinion())
    return path


def edited(sealed, tmp_path, statement):
    path = tmp_path / "r.sqlite"
    shutil.copy(sealed, path)
    connection = sqlite3.connect(path)
    assert connection.execute(statement).rowcount == 1, statement
    connection.commit()
    connection.close()
    return path


def verify(path):
    with ResultStore.read(path) as store:
        return store.verify(RECORD.run_id)


def test_what_the_store_wrote_holds(sealed):
    assert verify(sealed) == 2 * (3 * 2 * 2)


def test_a_sample_handed_to_another_run_is_missed_by_its_own(sealed, tmp_path):
    """Its row is no longer looked at for this run; what is noticed is that it counts as not drawn."""
    path = edited(sealed, tmp_path, "UPDATE samples SET run_id = 'other' WHERE sample_id = 3")

    def drawn(store):
        with ResultStore.read(store) as reader:
            return sum(len(reader.graded_samples(RECORD.run_id, entry)) for entry in reader.evaluations(RECORD.run_id))

    assert drawn(path) == drawn(sealed) - 1


@pytest.mark.parametrize("column", [name for name in SAMPLE_COLUMNS.split(", ") if name != "run_id"])
def test_an_edit_of_any_column_of_a_sample_is_noticed(sealed, tmp_path, column):
    path = edited(sealed, tmp_path, f"UPDATE samples SET {column} = coalesce({column}, '') || '9' WHERE sample_id = 3")
    with pytest.raises(EvaluationError, match="was changed after it was written"):
        verify(path)


@pytest.mark.parametrize("column", [name for name in GRADE_COLUMNS.split(", ") if name != "sample_id"])
def test_an_edit_of_any_column_of_a_grade_is_noticed(sealed, tmp_path, column):
    path = edited(sealed, tmp_path, f"UPDATE grades SET {column} = coalesce({column}, '') || '1' WHERE sample_id = 3")
    with pytest.raises(EvaluationError, match="a stored grade was changed"):
        verify(path)


def test_a_verdict_turned_right_is_noticed_and_named(sealed, tmp_path):
    """What somebody would do who wants a better score."""
    path = tmp_path / "r.sqlite"
    shutil.copy(sealed, path)
    connection = sqlite3.connect(path)
    changed = connection.execute("UPDATE grades SET verdict = 'correct' WHERE verdict = 'wrong'").rowcount
    connection.commit()
    connection.close()
    assert changed > 0
    with pytest.raises(EvaluationError) as caught:
        verify(path)
    assert "grade" in str(caught.value)
    assert caught.value.file == str(path)
