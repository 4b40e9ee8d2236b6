"""Stores, boards and a site that the leaderboard's tests share."""

import json
import re

import pytest
from support.eval_client import RuleClient, arithmetic_tasks, both_modes, shared_second_opinion
from support.sites import MODELS, aime_task, code_task, documents_task, fill_store

from ms4_evals.leaderboard.collect import collect_boards
from ms4_evals.progress import Progress
from ms4_evals.runner import make_plans, run_evaluations
from ms4_evals.store.records import RunRecord
from ms4_evals.store.results import ResultStore

TASKS = arithmetic_tasks(problems=5, samples=2)


def evaluate(path, name, *, tasks=TASKS, modes=None, label=None, client=None):
    client = client or RuleClient(tasks, name=name)
    plans = make_plans(tasks, modes or both_modes())
    run = RunRecord(label or name, client.identity(), 0)
    with ResultStore.open(path) as store:
        run_evaluations(client, store, plans, run, config={}, progress=Progress(), second_opinion=shared_second_opinion())
    return run


@pytest.fixture(scope="session")
def evaluate_into():
    """evaluate_into(path, name, *, tasks, modes, label, client): one more run in a store."""
    return evaluate


@pytest.fixture(scope="session")
def boards(tmp_path_factory):
    """Two boards (digits, letters) with two runs each; the second run is unfinished on letters and has a hostile name."""
    path = tmp_path_factory.mktemp("boards") / "r.sqlite"
    both = TASKS + arithmetic_tasks(problems=4, samples=1, kind="letters")
    evaluate(path, "tiny", tasks=both)
    hostile = "<script>alert('x')</script> & $name_ [red]"
    failing = RuleClient(both, name="other", fail=lambda request: "letters" in request.problem_id and request.problem_id.endswith("1"))
    evaluate(path, "other", tasks=both, label=hostile, client=failing)
    return collect_boards([path])


@pytest.fixture(scope="session")
def rich_boards(tmp_path_factory):
    """Three boards as of AIME, LiveCodeBench and AA-LCR with two models, facts, notes and second opinions."""
    path = tmp_path_factory.mktemp("rich") / "r.sqlite"
    fill_store(path, [aime_task(2, 10), code_task(2, 20), documents_task(1, 5)], MODELS[:2], scale=0.02)
    return collect_boards([path])


def read_shard(path):
    """(name, value) of a data file, read as the page reads it."""
    found = re.fullmatch(r'ms4Data\("([a-z0-9-]+)",(.*)\);\n', path.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert found, path
    return found[1], json.loads(found[2])


@pytest.fixture(scope="session")
def read_data():
    """read_data(path): (name, value) of a data file."""
    return read_shard


@pytest.fixture(scope="session")
def read_texts():
    """read_texts(folder, stem): the texts of every item of a stem, joined as the page joins them."""

    def read(folder, stem):
        items, number = {}, 0
        while (path := folder / f"{stem}-{number}.js").exists():
            for item, field, text in read_shard(path)[1]:
                fields = items.setdefault(item, {})
                fields[field] = fields.get(field, "") + text
            number += 1
        return items

    return read
