"""W&B without an account: an offline run is written, read back with W&B's own message types, and continued under the same id."""

import json
import sys
import time

import pytest
from support.wandb_files import read_records

from ms4_train.config.schema import WandbSection
from ms4_train.errors import MissingDependencyError
from ms4_train.tracking.wandb_run import WandbTracker


def history(path):
    rows = []
    for record in read_records(path):
        if record.WhichOneof("record_type") == "history":
            rows.append({(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item})
    return rows


def test_offline_run_holds_the_metrics_and_resumes_under_its_id(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_RUN_ID", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    section = WandbSection(mode="offline", project="test", tags=["tiny"])
    first = WandbTracker(section, tmp_path, {"seed": 3})
    first.log(1, {"loss": 2.0})
    first.log(2, {"loss": 1.5})
    state = first.state()
    first.close()
    second = WandbTracker(section, tmp_path, {"seed": 3}, resumed=state)
    second.log(3, {"loss": 1.25})
    second.summary({"final": 1.25})
    second.close()

    assert second.run_id == first.run_id == state["wandb_run_id"]
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{first.run_id}.wandb"))
    assert len(files) == 2
    for _ in range(200):  # on a busy machine W&B's own process may write a file's end after the run's
        rows = [row for path in files for row in history(path)]
        if len(rows) == 3:
            break
        time.sleep(0.1)
    assert [(row["_step"], row["loss"]) for row in rows] == [(1, 2.0), (2, 1.5), (3, 1.25)]


def test_without_wandb_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingDependencyError, match="pip install wandb"):
        WandbTracker(WandbSection(mode="offline"), tmp_path, {})
