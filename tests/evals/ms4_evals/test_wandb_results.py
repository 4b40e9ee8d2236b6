"""An evaluation in an offline W&B run, read back from W&B's own files."""

from __future__ import annotations

import json

import pytest
from support.eval_client import RuleClient, arithmetic_tasks, both_modes, shared_second_opinion
from support.wandb_files import artifacts, read_records, tables

from ms4_evals.progress import Progress
from ms4_evals.report import build_report, write_report
from ms4_evals.runner import make_plans, run_evaluations
from ms4_evals.store.records import RunRecord
from ms4_evals.store.results import ResultStore
from ms4_evals.wandb_results import log_results
from ms4_train.config.schema import WandbSection

TASKS = arithmetic_tasks(problems=3, samples=2)
RECORD = RunRecord("tuned <model>", {"weights": "rule"}, 0)


@pytest.fixture
def logged(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_RUN_ID", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    plans = make_plans(TASKS, both_modes())
    evaluations = [plan.evaluation for plan in plans]
    with ResultStore.open(tmp_path / "r.sqlite") as store:
        client = RuleClient(TASKS)
        run_evaluations(client, store, plans, RECORD, config={}, progress=Progress(), second_opinion=shared_second_opinion())
        report = build_report(store, RECORD, evaluations, confidence=0.95, resamples=100)
        run_id = log_results(
            WandbSection(mode="offline", project="test"),
            tmp_path / "logged",
            store=store,
            run=RECORD,
            evaluations=evaluations,
            report=report,
            metrics={"eval/arithmetic_digits_6/high/score": 1.0},
            config={"seed": 0},
            files=write_report(report, tmp_path / "reports"),
        )
    return tmp_path / "logged" / "wandb", run_id


def test_summary_tables_and_artifact(logged):
    folder, run_id = logged
    (file,) = folder.glob("offline-run-*/run-*.wandb")
    records = list(read_records(file))
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (run.display_name, run.run_id) == (RECORD.label, run_id)
    summary = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            summary |= {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.summary.update}
    assert summary["eval/arithmetic_digits_6/high/score"] == 1.0
    found = tables(file.parent)
    assert set(found) == {"scores", "problems", "samples"}
    assert [row["mode"] for row in found["scores"]] == ["none", "high"]
    assert found["scores"][1]["score"] == 1.0
    assert len(found["problems"]) == 2 * 3
    assert len(found["samples"]) == 2 * 3 * 2
    assert {row["verdict"] for row in found["samples"] if row["mode"] == "high"} == {"correct"}
    assert all(row["thinking"] for row in found["samples"] if row["mode"] == "high")
    (files,) = [names for kind, names in artifacts(records) if kind == "evaluation"]
    assert sorted(name.rsplit(".", 1)[1] for name in files) == ["json", "md"]


def test_the_same_run_has_the_same_id(logged):
    _, run_id = logged
    assert run_id == RECORD.run_id[:16]
