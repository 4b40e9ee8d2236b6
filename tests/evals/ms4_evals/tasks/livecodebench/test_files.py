"""Where rows come from: a hub on this machine (the real client talks to it), folders, single files."""

import dataclasses
import hashlib

import pytest
from support.code_rows import code_row, write_release, write_rows
from support.hub_client import hub_client

from ms4_evals.tasks.livecodebench import files
from ms4_evals.tasks.livecodebench.files import load_rows
from ms4_evals.tasks.livecodebench.releases import FILES, HUB_DATASET, HUB_REVISION
from ms4_train.errors import EvaluationError, MissingDependencyError, MS4Error


def content(tmp_path, *names):
    return write_rows(tmp_path / "rows.jsonl", [code_row(name) for name in names]).read_bytes()


@pytest.fixture
def small_release(monkeypatch, tmp_path):
    """A release v2 of two small files: their names and what they hold."""
    held = {"test.jsonl": content(tmp_path, "a", "b"), "test2.jsonl": content(tmp_path, "c")}
    small = [dataclasses.replace(file, sha256=hashlib.sha256(held[file.name]).hexdigest(), size=len(held[file.name])) for file in FILES[:2]]
    monkeypatch.setattr(files, "release_files", lambda release: tuple(small[: int(release[1])]))
    return held


def test_files_are_fetched_from_the_hub_at_the_fixed_revision(small_release, monkeypatch, tmp_path):
    with hub_client(monkeypatch, tmp_path) as hub:
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        hub.add(HUB_DATASET, {"test.jsonl": b"newer\n"})
        repo = hub.repos[HUB_DATASET]
        hub.add(HUB_DATASET, small_release, branch="old")
        repo.commits[HUB_REVISION] = repo.commits[repo.branches["old"]]
        assert [row.question_id for row in load_rows("v2", None)] == ["a", "b", "c"]
        fetched = [path for path in hub.sent("GET", "") if "test" in path]
        assert len(fetched) == 2
        assert [row.question_id for row in load_rows("v1", None)] == ["a", "b"]
        assert [path for path in hub.sent("GET", "") if "test" in path] == fetched, "kept from the first time"
        resolved = [path for _, path, _ in hub.requests if "resolve" in path]
        assert resolved
        assert all(f"/datasets/{HUB_DATASET}/resolve/{HUB_REVISION}/" in path for path in resolved)


def test_a_download_that_is_not_the_published_file_is_refused(small_release, monkeypatch, tmp_path):
    small_release["test.jsonl"] = small_release["test.jsonl"].replace(b"Title", b"title")
    with hub_client(monkeypatch, tmp_path) as hub:
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        hub.add(HUB_DATASET, small_release)
        repo = hub.repos[HUB_DATASET]
        repo.commits[HUB_REVISION] = repo.commits[repo.branches["main"]]
        with pytest.raises(EvaluationError, match="not the published one"):
            load_rows("v1", None)


def test_the_hub_out_of_reach_is_one_clear_error(tmp_path, monkeypatch):
    """The tests run with the hub switched off, so this is the real refusal of the real library."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingDependencyError, match=HUB_DATASET) as caught:
        load_rows("v6", None)
    assert "path" in (caught.value.fix or "")


def test_folders_hold_the_files_of_a_release(tmp_path):
    write_release(tmp_path, [code_row(f"p{number}") for number in range(420)])
    rows = load_rows("v2", tmp_path)
    assert [row.question_id for row in rows] == [f"p{number}" for number in range(420)]
    assert len(load_rows("v1", tmp_path)) == 400
    with pytest.raises(EvaluationError, match=r"no test3\.jsonl; release v3 is") as caught:
        load_rows("v3", tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_single_file_is_taken_whole(tmp_path):
    path = write_rows(tmp_path / "mine.jsonl", [code_row("a"), code_row("b")])
    assert [row.question_id for row in load_rows("v6", path)] == ["a", "b"]


def test_repeated_missing_and_empty(tmp_path):
    with pytest.raises(EvaluationError, match="twice") as caught:
        load_rows("v1", write_rows(tmp_path / "twice.jsonl", [code_row("a"), code_row("b"), code_row("a")]))
    assert (caught.value.line, caught.value.key) == (3, "a")
    with pytest.raises(EvaluationError, match="no problems"):
        load_rows("v1", write_rows(tmp_path / "empty.jsonl", []))
    with pytest.raises(MS4Error, match="no such file"):
        load_rows("v1", tmp_path / "absent.jsonl")
