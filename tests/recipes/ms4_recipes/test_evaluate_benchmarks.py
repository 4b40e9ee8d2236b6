"""AIME, LiveCodeBench and AA-LCR in both reasoning modes, through the engine of this process and through ``ms4 serve``, one client code.

A tiny model that has learnt to box, to program and to think (``support/examinee.py``) sits them: programs run in the sandbox, a judge on a
local server compares answers, and every sample of the server equals the engine's. Slow: all 60 problems of AIME, 20 of LiveCodeBench and a
question of AA-LCR over more than 72,000 tokens.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from pathlib import Path

import pytest
from support.benchmarks import benchmark_run, code_file, serving, task_sections
from support.examinee import BOXED, PROGRAM, train_examinee
from support.judges import judging
from support.lcr_data import accept_small_documents, require_package, small_questions, write_hub_copy

from ms4_evals.resources import Resources
from ms4_evals.tasks.lcr.published import INPUT_TOKENS
from ms4_evals.tasks.registry import build_tasks
from ms4_recipes import evaluate
from ms4_train.config.eval_tasks import AimeTask, LiveCodeBenchTask

pytestmark = [pytest.mark.data, pytest.mark.usefixtures("sandboxed")]
LEAST_TOKENS = 72_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("benchmarks")


@pytest.fixture(scope="module")
def code(folder, data_folder) -> Path:
    return code_file(folder, data_folder, 20)


@pytest.fixture(scope="module")
def model(folder, data_folder, code) -> Path:
    aime = AimeTask(task="aime", years=[2024, 2025], path=str(data_folder / "aime"))
    with Resources() as resources:
        tasks = build_tasks([aime, LiveCodeBenchTask(task="livecodebench", path=str(code))], resources)
        return train_examinee(folder / "examinee", tasks)


def stored(store: Path) -> dict[tuple[str, str], tuple[str, str, str, str, int]]:
    """Thinking, answer, verdict, details and prompt tokens by problem and mode."""
    with sqlite3.connect(store) as connection:
        rows = connection.execute(
            "SELECT problem_id, mode, thinking, answer, verdict, details, prompt_tokens FROM samples s"
            " JOIN grades g ON g.sample_id = s.sample_id"
        ).fetchall()
    return {(row[0], row[1]): row[2:] for row in rows}


def check(store: Path, report: Path, *, aime: int, code: int, lcr_tokens: int) -> None:
    """Everything has its verdict, got in the way that its benchmark demands."""
    values = json.loads(report.read_text())
    assert values["complete"]
    found = stored(store)
    families = Counter((name.split("_")[0].split("/")[0], mode) for name, mode in found)
    assert families == {(name, mode): n for name, n in (("aime", aime), ("livecodebench", code), ("lcr", 1)) for mode in ("none", "high")}
    answers = {family: [row for (name, _), row in found.items() if name.startswith(family)] for family in ("aime", "livecodebench", "lcr")}
    assert sum(row[1] == BOXED for row in answers["aime"]) > aime, "more than half of the answers are boxed"
    ran = [json.loads(row[3]) for row in answers["livecodebench"] if row[1] == PROGRAM]
    assert len(ran) > code // 2
    assert all("official" in details and details["class"] for details in ran), "both graders ran the program"
    thinking = Counter(bool(row[0]) for (_, mode), row in found.items() if mode == "high")
    assert thinking[True] > thinking[False], "high thinks"
    for row in answers["lcr"]:
        assert row[4] >= lcr_tokens
        assert row[2] in ("correct", "wrong") or not row[1].strip(), "judged, unless there was nothing to judge"


def both_ways(folder: Path, model: Path, tasks: list, *, context: int, aime: int, code: int, lcr_tokens: int) -> None:
    with judging() as judge:
        local = folder / "engine.sqlite"
        report = evaluate.run(benchmark_run(local, tasks, judge.url, model={"path": str(model), "dtype": "float32"}))
        check(local, report, aime=aime, code=code, lcr_tokens=lcr_tokens)
        limits = ("--max-context", str(context), "--cache-tokens", str(2 * context), "--max-batch-size", "8", "--deterministic")
        with serving(model, folder / "serve.log", *limits) as url:
            remote = folder / "server.sqlite"
            report = evaluate.run(benchmark_run(remote, tasks, judge.url, endpoint={"servers": [{"base_url": url}]}))
            check(remote, report, aime=aime, code=code, lcr_tokens=lcr_tokens)
    ours, theirs = stored(local), stored(remote)
    assert ours.keys() == theirs.keys()
    for key, (thinking, answer, verdict, _, prompt_tokens) in ours.items():
        assert theirs[key][:3] == (thinking, answer, verdict), key
        assert theirs[key][4] == prompt_tokens, key


def test_a_few_of_each_through_the_engine_and_through_the_server(folder, model, data_folder, monkeypatch):
    accept_small_documents(monkeypatch)
    lcr = {"path": str(write_hub_copy(folder / "lcr", small_questions())), "questions": [13]}
    tasks = task_sections(data_folder, code_file(folder / "few", data_folder, 4), aime=3, lcr=lcr)
    both_ways(folder, model, tasks, context=4096, aime=6, code=4, lcr_tokens=100)


@pytest.mark.slow
def test_all_of_aime_twenty_programs_and_a_question_over_72000_tokens(tmp_path, model, data_folder, code):
    require_package()
    question = min((number for number, tokens in INPUT_TOKENS.items() if tokens >= LEAST_TOKENS), key=INPUT_TOKENS.__getitem__)
    tasks = task_sections(data_folder, code, aime=30, lcr={"questions": [question]})
    both_ways(tmp_path, model, tasks, context=131_072, aime=60, code=20, lcr_tokens=LEAST_TOKENS)
