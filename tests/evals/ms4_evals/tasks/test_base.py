"""Task identities change with exactly what shapes a score."""

import dataclasses

from ms4_evals.graders.integer import IntegerGrader
from ms4_evals.tasks.base import QuestionTask, TaskProblem, board_id, column_id, grading_id, prompt_id, sampling_id, shown_prompt

SAMPLING = {"temperature": 0.7, "top_p": 1.0, "max_tokens": 64}
TASK = QuestionTask("t", "Title", 4, (TaskProblem("t/1", "What?", "7"), TaskProblem("t/2", "Why?", "8")), IntegerGrader(), "Box it.")


OTHER_GRADER = IntegerGrader(grader_id="other/1")


def test_messages():
    assert TASK.messages(TASK.problems[0]) == [{"role": "user", "content": "Box it.\n\nWhat?"}]
    assert dataclasses.replace(TASK, instruction="").messages(TASK.problems[0]) == [{"role": "user", "content": "What?"}]


def test_the_column_changes_with_data_prompt_grader_mode_and_sampling():
    changed = [
        dataclasses.replace(TASK, instruction="Box it!"),
        dataclasses.replace(TASK, problems=TASK.problems[:1]),
        dataclasses.replace(TASK, problems=(TaskProblem("t/1", "What?", "9"), TASK.problems[1])),
        dataclasses.replace(TASK, problems=tuple(reversed(TASK.problems))),
        dataclasses.replace(TASK, grader=OTHER_GRADER),
        dataclasses.replace(TASK, name="u"),
    ]
    columns = [column_id(task, "high", SAMPLING) for task in (TASK, *changed)]
    columns += [column_id(TASK, "none", SAMPLING), column_id(TASK, "high", SAMPLING | {"max_tokens": 65})]
    assert len(set(columns)) == len(columns)
    assert len({board_id(task) for task in (TASK, *changed)}) == len(changed) + 1


def test_title_and_number_of_samples_are_not_part_of_any_identity():
    same = dataclasses.replace(TASK, title="Other", samples=16)
    assert column_id(same, "high", SAMPLING) == column_id(TASK, "high", SAMPLING)
    assert board_id(same) == board_id(TASK)


def test_stored_answers_are_found_by_prompt_and_sampling_and_graded_by_grader_and_gold():
    messages = TASK.messages(TASK.problems[0])
    assert prompt_id(messages) != prompt_id(TASK.messages(TASK.problems[1]))
    assert sampling_id(SAMPLING) == sampling_id(dict(reversed(SAMPLING.items())))
    ids = {grading_id(grader, gold) for grader in (IntegerGrader(), OTHER_GRADER) for gold in ("7", "8")}
    assert len(ids) == 4


def test_a_prompt_is_shown_with_its_roles_and_a_long_one_without_its_middle():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    assert shown_prompt(messages) == "[system]\nBe brief.\n\n[user]\n1+1?"
    long = shown_prompt([{"role": "user", "content": "a" * 50_000 + "z" * 50_000}])
    assert len(long) < 17_000
    assert long.startswith("[user]\naaa")
    assert long.endswith("zzz")
    assert "84,007 characters left out" in long
