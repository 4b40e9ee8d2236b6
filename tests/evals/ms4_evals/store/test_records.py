"""Identities of runs, and counts of evaluations."""

import dataclasses

from support.eval_client import arithmetic_tasks, both_modes

from ms4_evals.runner import make_plans
from ms4_evals.store.records import RunRecord


def test_a_run_is_its_model_and_its_seed_and_not_its_label():
    run = RunRecord("a", {"weights": "w", "adapter": None}, 0)
    assert dataclasses.replace(run, label="b").run_id == run.run_id
    others = [dataclasses.replace(run, seed=1), dataclasses.replace(run, model={"weights": "w", "adapter": "x"})]
    assert len({run.run_id, *(other.run_id for other in others)}) == 3


def test_planned_samples():
    (plan, _) = make_plans(arithmetic_tasks(problems=7, samples=3), both_modes())
    assert plan.evaluation.planned == 21
