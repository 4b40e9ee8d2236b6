"""From a section of a configuration to the task, on the recorded problems."""

import collections
import dataclasses
import hashlib
import subprocess
import sys
from typing import Any

import pytest
from support.code_rows import code_row, published_prompts, recorded_rows, write_release, write_rows

from ms4_evals.graders.base import Grade
from ms4_evals.tasks.base import board_id
from ms4_evals.tasks.livecodebench import task as task_module
from ms4_evals.tasks.livecodebench.files import load_rows
from ms4_evals.tasks.livecodebench.task import livecodebench_task
from ms4_train.config.eval_tasks import LiveCodeBenchTask
from ms4_train.errors import EvaluationError


@dataclasses.dataclass(frozen=True)
class CountingGrader:
    """Says how many tests a problem has."""

    source: Any
    grader_id: str = "counting/1"
    second_grader: str = ""
    is_instant: bool = True

    def grade(self, problem, answer, *, is_truncated):
        return Grade("wrong", str(len(self.source.problem(problem.problem_id).tests)))


def task_of(path, **values):
    return livecodebench_task(LiveCodeBenchTask(task="livecodebench", path=str(path), **values), CountingGrader)


@pytest.fixture(scope="module")
def release_v5(data_folder, tmp_path_factory):
    """All 880 problems of release v5, in five files."""
    return write_release(tmp_path_factory.mktemp("release"), recorded_rows(data_folder, with_statements=False))


@pytest.mark.data
def test_windows_of_the_recorded_release(release_v5):
    aa = task_of(release_v5, window="aa")
    assert (aa.name, len(aa.problems)) == ("livecodebench_v5_aa", 315)
    assert aa.title == "LiveCodeBench v5, window aa, from 2024-07-01 to 2024-12-31, 315 problems"
    v5 = task_of(release_v5, window="v5", prompt="reasoning")
    assert (v5.name, len(v5.problems)) == ("livecodebench_reasoning_v5_2408-2502", 279)
    assert v5.title == "LiveCodeBench v5, window 2408-2502, from 2024-08-01 to 2025-02-01, reasoning prompt, 279 problems"
    whole = task_of(release_v5, release="v5")
    assert (whole.name, whole.title, whole.samples) == ("livecodebench_v5", "LiveCodeBench v5, 880 problems", 4)
    facts = collections.Counter(problem.facts["difficulty"] for problem in whole.problems)
    assert facts == {"medium": 331, "easy": 279, "hard": 270}
    assert collections.Counter(problem.facts["platform"] for problem in whole.problems) == {
        "atcoder": 490,
        "leetcode": 381,
        "codeforces": 9,
    }
    months = collections.Counter(problem.facts["month"] for problem in whole.problems)
    assert (months["2024-08"], min(months), max(months)) == (66, "2023-05", "2025-01")
    errata = collections.Counter(problem.facts["errata"] for problem in whole.problems if "errata" in problem.facts)
    assert errata == {"multi-answer": 8, "interactive": 2, "bad-tests": 3}, "AtCoder's, and the one title that its function gives"
    assert len({problem.problem_id for problem in whole.problems}) == 880


@pytest.mark.data
def test_prompts_and_graders_of_real_problems(release_v5, data_folder):
    task = task_of(release_v5, window="v5", prompt="reasoning")
    prompts = published_prompts(data_folder)
    for problem in task.problems:
        assert task.messages(problem) == [{"role": "user", "content": prompts[problem.problem_id.partition("/")[2]]["prompt"]}]
    official = task_of(release_v5, window="v5")
    problem = next(problem for problem in official.problems if problem.problem_id == "livecodebench/abc365_b")
    system, user = official.messages(problem)
    assert system["role"] == "system"
    assert "which element in a is the second largest?" in user["content"].lower()
    assert problem.question.startswith("abc365_b\n\nYou are given an integer sequence")
    assert official.grader.grade(problem, "", is_truncated=False).extracted == "3", "two public tests and one private"
    assert task.grader.grade(next(p for p in task.problems if p.problem_id.endswith("abc365_b")), "", is_truncated=False).extracted == "3"


@pytest.mark.data
def test_what_is_left_out_is_in_title_and_name(release_v5):
    task = task_of(release_v5, window="aa", difficulties=["hard", "easy"], platforms=["atcoder"], limit=7)
    assert task.name == "livecodebench_v5_aa_easy_hard_atcoder"
    count = sum(
        problem.facts["difficulty"] != "medium" and problem.facts["platform"] == "atcoder"
        for problem in task_of(release_v5, window="aa").problems
    )
    assert (
        task.title == f"LiveCodeBench v5, window aa, from 2024-07-01 to 2024-12-31, easy and hard and atcoder, first 7 of {count} problems"
    )
    assert len(task.problems) == 7
    dates = task_of(release_v5, release="v5", start_date="2024-10-01", end_date="2025-02-01")
    assert (dates.name, dates.title) == (
        "livecodebench_v5_2024-10-01_2025-02-01",
        "LiveCodeBench v5, from 2024-10-01 to 2025-02-01, 166 problems",
    )
    assert task_of(release_v5, release="v4", start_date="2024-08-30").title.startswith("LiveCodeBench v4, from 2024-08-30, ")
    assert task_of(release_v5, release="v1", end_date="2023-05-31").title == "LiveCodeBench v1, to 2023-05-31, 34 problems"


def test_incomplete_data_are_called_so(tmp_path):
    path = write_rows(tmp_path / "mine.jsonl", [code_row("a"), code_row("b"), code_row("c", contest_date="2023-06-01T00:00:00")])
    assert task_of(path).title == "LiveCodeBench v6, 3 of 1055 problems"
    assert task_of(path, window="v6").title.endswith(", 2 of 454 problems")
    assert task_of(path, window="v5", limit=1).title.endswith(", first 1 of 2 of 279 problems")
    with pytest.raises(EvaluationError, match="no problem is left"):
        task_of(path, difficulties=["hard"])


def test_identity_changes_with_tests_prompt_and_data(tmp_path):
    def board(*rows, **values):
        path = write_rows(tmp_path / "f.jsonl", rows)
        return board_id(task_of(path, **values))

    base = board(code_row("a"), code_row("b"))
    assert board(code_row("a"), code_row("b")) == base
    changed = [
        board(code_row("a"), code_row("b", question_content="Another.")),
        board(code_row("a"), code_row("b", private=[])),
        board(code_row("a"), code_row("b", function="f")),
        board(code_row("b"), code_row("a")),
        board(code_row("a"), code_row("b"), prompt="reasoning"),
        board(code_row("a")),
    ]
    assert len({base, *changed}) == 7


def test_one_run_may_ask_the_same_problem_in_both_ways(tmp_path):
    path = write_rows(tmp_path / "f.jsonl", [code_row("a")])
    ids = {task_of(path, prompt=prompt).problems[0].problem_id for prompt in ("official", "reasoning")}
    assert ids == {"livecodebench/a", "livecodebench_reasoning/a"}


def test_problems_without_tests_are_named_before_they_are_asked(tmp_path):
    row = [code_row("abc301_a"), code_row("abc301_b", public=[], private=[]), code_row("abc301_c", public=[])]
    *_, note = task_of(write_rows(tmp_path / "rows.jsonl", row)).notes
    assert note.startswith("warning: 1 problems have no tests")
    assert note.endswith(": abc301_b")
    row[1] = code_row("abc301_b", private=[])
    assert not [note for note in task_of(write_rows(tmp_path / "all.jsonl", row)).notes if "warning" in note]


def test_notes_name_the_data_and_the_errata(tmp_path, monkeypatch):
    path = write_rows(tmp_path / "f.jsonl", [code_row("abc337_e"), code_row("b")])
    assert task_of(path).notes == (
        f"data: {path}, not compared with the published files",
        "1 of 2 problems are known to be graded wrongly (errata); reports give scores without them too",
    )
    rows = load_rows("v6", path)
    monkeypatch.setattr(task_module, "load_rows", lambda release, path: rows[1:])
    task = livecodebench_task(LiveCodeBenchTask(task="livecodebench"), CountingGrader)
    assert task.notes == ("data: livecodebench/code_generation_lite on the hub at 0fe84c3912ea, the SHA-256 of every file checked",)


def test_errata_by_title(tmp_path):
    row = code_row("3221", function="findPeaks", question_title="find-the-peaks")
    (problem,) = task_of(write_rows(tmp_path / "f.jsonl", [row])).problems
    assert problem.facts == {"difficulty": "easy", "platform": "leetcode", "month": "2024-08", "errata": "multi-answer"}


def test_control_gold_is_not_the_hash_of_a_file(tmp_path):
    """The same tests in another file, beside other rows, are the same tests."""
    first = task_of(write_rows(tmp_path / "1.jsonl", [code_row("a")])).problems[0].gold
    second = task_of(write_rows(tmp_path / "2.jsonl", [code_row("b"), code_row("a")])).problems[1].gold
    assert first == second != hashlib.sha256((tmp_path / "1.jsonl").read_bytes()).hexdigest()


def test_no_heavy_import():
    code = (
        "import sys\nfor name in ('torch', 'triton', 'deepspeed', 'huggingface_hub', 'datasets'): sys.modules[name] = None\n"
        "import ms4_evals.tasks.livecodebench.task"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
