"""The AIME task: the real problems, and files that are not as they should be."""

import json
import re

import pytest

from ms4_evals.graders.integer import IntegerGrader
from ms4_evals.tasks import aime
from ms4_evals.tasks.aime import aime_tasks
from ms4_train.config.evaluation import AimeTask
from ms4_train.errors import EvaluationError, MissingDependencyError, MS4Error


def rows(count=30):
    return [{"problem": f"Problem {number}?", "answer": number} for number in range(count)]


def write(path, lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8")
    return path


def section(path, **values):
    return AimeTask(task="aime", path=str(path), **{"years": [2025], **values})


@pytest.mark.data
def test_the_sixty_real_problems(data_folder):
    first, second = aime_tasks(section(data_folder / "aime", years=[2024, 2025], samples=16))
    assert [task.name for task in (first, second)] == ["aime_2024", "aime_2025"]
    problems = first.problems + second.problems
    assert len(problems) == len({problem.problem_id for problem in problems}) == 60
    assert all(0 <= int(problem.gold) <= 999 for problem in problems)
    assert not [problem for problem in problems if "reason step by step" in problem.question or "boxed" in problem.question]
    assert second.problems[0].gold == "70"
    (message,) = second.messages(second.problems[0])
    assert message["content"] == (
        "Put your final answer within \\boxed{}.\nThe answer is an integer between 0 and 999 inclusive.\n\n"
        "Find the sum of all integer bases $b>9$ for which $17_b$ is a divisor of $97_b.$"
    )


@pytest.mark.data
@pytest.mark.parametrize(
    "form",
    [
        "\\boxed{%d}", "\\boxed{%03d}", "\\boxed{%d.0}", "\\boxed{%d^\\circ}", "\\boxed{\\text{%d}}", "$\\boxed{1}$ ... $\\boxed{%d}$",
        "\\fbox{%d}", "\\boxed{m+n=%d}", "\\boxed{%d \\pmod{1000}}", "\\boxed{\\boxed{%d}}", "\\boxed{\\mathbf{%d}}",
    ],
)  # fmt: skip
def test_every_real_answer_is_graded_right_in_every_form(data_folder, form):
    grader = IntegerGrader()
    for task in aime_tasks(section(data_folder / "aime", years=[2024, 2025])):
        for problem in task.problems:
            gold = int(problem.gold)
            assert grader.grade(problem, form % gold, is_truncated=False).verdict == "correct"
            assert grader.grade(problem, form % (gold + 1), is_truncated=False).verdict == "wrong"


def test_a_local_file_and_a_folder_give_the_same_task(tmp_path):
    path = write(tmp_path / "aime25.jsonl", rows())
    assert aime_tasks(section(path)) == aime_tasks(section(tmp_path))


def test_foreign_instructions_are_taken_off_and_nothing_else():
    row = {"prompt": "How many?\nPlease reason step by step, and put your final answer within \\boxed{}.", "answer": "012"}
    keep = {"problem": "Please reason step by step about this.", "answer": 3}
    numbered = list(enumerate([row, keep, *rows(28)], start=1))
    problems = aime.read_rows(numbered, origin="f", year=2025)
    assert (problems[0].question, problems[0].gold) == ("How many?", "12")
    assert problems[1].question == keep["problem"]


@pytest.mark.data
@pytest.mark.parametrize(("year", "file"), [(2024, "aime25.jsonl"), (2025, "aime24.jsonl"), (2026, "aime25.jsonl")])
def test_another_years_file_is_refused(data_folder, year, file):
    """Its scores would be said to be of a year whose problems nobody was asked."""
    with pytest.raises(EvaluationError, match=rf"problems of 20{file[4:6]}, not of {year}") as caught:
        aime_tasks(section(data_folder / "aime" / file, years=[year], limit=1))
    assert caught.value.key == "years"


@pytest.mark.data
def test_only_other_answers_than_the_published_ones_are_noted(data_folder, tmp_path):
    path = data_folder / "aime" / "aime25.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    (shuffled,) = aime_tasks(section(write(tmp_path / "a.jsonl", lines[::-1])))
    assert shuffled.notes == ()
    row = json.loads(lines[0]) | {"answer": 71}
    (changed,) = aime_tasks(section(write(tmp_path / "b.jsonl", [row, *lines[1:]])))
    assert "not the published ones" in changed.notes[0]
    (unknown,) = aime_tasks(section(write(tmp_path / "c.jsonl", rows()), years=[2026]))
    assert unknown.notes == ()


def test_a_limit_is_named_in_the_title(tmp_path):
    (task,) = aime_tasks(section(write(tmp_path / "a.jsonl", rows()), limit=5))
    assert len(task.problems) == 5
    assert task.title == "AIME 2025, first 5 of 30 problems"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (rows(29), "30 problems"),
        (rows(31), "30 problems"),
        ([*rows(29), rows(1)[0]], "twice"),
        ([*rows(29), {"problem": "p", "answer": 1000}], "0 to 999"),
        ([*rows(29), {"problem": "p", "answer": -1}], "0 to 999"),
        ([*rows(29), {"problem": "p", "answer": True}], "0 to 999"),
        ([*rows(29), {"problem": "p", "answer": "7.5"}], "0 to 999"),
        ([*rows(29), {"problem": "p", "answer": "\N{ARABIC-INDIC DIGIT SEVEN}"}], "0 to 999"),
        ([*rows(29), {"problem": "p"}], "0 to 999"),
        ([*rows(29), {"problem": " ", "answer": 1}], "problem text"),
        ([*rows(29), {"question": "p", "answer": 1}], "problem text"),
        ([*rows(29), "[1, 2]"], "object"),
        ([*rows(29), '{"problem": "p", "answer": 1'], "JSON"),
    ],
)
def test_bad_files_are_refused_with_their_place(tmp_path, lines, message):
    path = write(tmp_path / "bad.jsonl", lines)
    with pytest.raises(MS4Error, match=re.escape(message)) as caught:
        aime_tasks(section(path))
    assert str(path) in str(caught.value)
    assert "30 problems" in str(caught.value) or caught.value.line == 30
    assert caught.value.fix


def test_missing_files_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(MS4Error):
            aime_tasks(section(path))
    with pytest.raises(MS4Error, match="several years"):
        aime_tasks(section(write(tmp_path / "a.jsonl", rows()), years=[2024, 2025]))


PUBLISHED = {
    2024: {"id": 60, "problem": "", "solution": "s", "answer": "204", "url": "u", "year": "2024"},
    2025: {"problem_idx": 1, "problem": "", "answer": 70, "problem_type": ["Algebra"]},
    2026: {"problem_idx": 1, "answer": 277, "problem": ""},
}
"""A row of each data set on the hub, with the columns and types that its card declares (all have one split, ``train``, of 30 rows)."""


@pytest.mark.parametrize("year", PUBLISHED)
def test_every_year_is_read_from_the_hub_as_its_data_set_is_published(year, monkeypatch):
    import datasets

    asked = []
    rows = [{**PUBLISHED[year], "problem": f"Problem {number}?"} for number in range(1, 31)]
    for number, row in enumerate(rows, start=1):
        row["answer"] = type(row["answer"])(number)
        if "problem_idx" in row:
            row["problem_idx"] = number
    shuffled = rows if year == 2024 else rows[::-1]

    def load_dataset(name, **options):
        asked.append((name, options))
        return datasets.Dataset.from_list(shuffled)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (task,) = aime_tasks(AimeTask(task="aime", years=[year]))
    assert asked == [(aime.HUB_DATASETS[year], {"split": "train"})]
    assert (task.name, task.title) == (f"aime_{year}", f"AIME {year}")
    assert [(problem.problem_id, problem.question, problem.gold) for problem in task.problems] == [
        (f"aime_{year}/{number:02d}", f"Problem {number}?", str(number)) for number in range(1, 31)
    ]


def test_the_hub_out_of_reach_is_one_clear_error(tmp_path, monkeypatch):
    """The tests run with the hub switched off, so this is the real refusal of the real library."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="MathArena/aime_2025") as caught:
        aime_tasks(AimeTask(task="aime", years=[2025]))
    assert "path" in (caught.value.fix or "")
