"""Boards: what stands side by side, and what never does."""

import dataclasses
import sqlite3

import pytest
from support.eval_client import RuleClient, arithmetic_tasks, both_modes

from ms4_evals.graders.integer import IntegerGrader
from ms4_evals.leaderboard.collect import ERRORS_LEFT_OUT, NO_SANDBOX, PARTIAL, board_values, collect_boards, marks_of
from ms4_train.config.evaluation import ModesSection
from ms4_train.errors import EvaluationError

TASKS = arithmetic_tasks(problems=5, samples=2)


def test_runs_of_equal_identity_share_columns_even_across_stores(tmp_path, evaluate_into):
    paths = [tmp_path / "a.sqlite", tmp_path / "b.sqlite"]
    for path, name in zip(paths, ("one", "two"), strict=True):
        evaluate_into(path, name)
    (board,) = collect_boards(paths)
    assert [column.heading for column in board.columns] == ["none", "high"]
    assert {row.label for row in board.rows} == {"one", "two"}
    for row in board.rows:
        assert set(row.cells) == {column.column_id for column in board.columns}
        assert row.difference is not None
        none, high = (row.cells[column.column_id].summary.score.value for column in board.columns)
        assert row.difference.value == pytest.approx(high - none)


@pytest.mark.parametrize(
    "changed",
    [
        {"instruction": "Box it."},
        {"problems": TASKS[0].problems[:4]},
        {"problems": (dataclasses.replace(TASKS[0].problems[0], gold="3"), *TASKS[0].problems[1:])},
        {"grader": IntegerGrader(grader_id="other/1")},
    ],
)
def test_another_prompt_problem_set_gold_answer_or_grader_is_another_board(tmp_path, evaluate_into, changed):
    path = tmp_path / "r.sqlite"
    evaluate_into(path, "one")
    tasks = [dataclasses.replace(TASKS[0], **changed)]
    evaluate_into(path, "two", tasks=tasks, client=RuleClient(TASKS, name="two"))
    first, second = collect_boards([path])
    assert [row.label for row in first.rows] == ["one"]
    assert [row.label for row in second.rows] == ["two"]


@pytest.mark.parametrize("key", ["temperature", "top_p", "max_tokens"])
def test_another_sampling_is_another_column(tmp_path, evaluate_into, key):
    path = tmp_path / "r.sqlite"
    evaluate_into(path, "one")
    high = both_modes().model_dump()["high"] | {key: {"temperature": 0.1, "top_p": 0.5, "max_tokens": 99}[key]}
    evaluate_into(path, "two", modes=ModesSection.model_validate({"none": {"max_tokens": 16}, "high": high}))
    (board,) = collect_boards([path])
    assert [column.mode for column in board.columns] == ["none", "high", "high"]
    assert len({column.heading for column in board.columns}) == 3
    filled = {row.label: {index for index, column in enumerate(board.columns) if column.column_id in row.cells} for row in board.rows}
    assert filled == {"one": {0, 1}, "two": {0, 2}}
    assert all(row.difference is not None for row in board.rows)


def test_another_number_of_samples_is_the_same_column(tmp_path, evaluate_into):
    path = tmp_path / "r.sqlite"
    evaluate_into(path, "one")
    evaluate_into(path, "two", tasks=arithmetic_tasks(problems=5, samples=3))
    (board,) = collect_boards([path])
    assert len(board.columns) == 2
    planned = {row.label: row.cells[board.columns[0].column_id].summary.evaluation.planned for row in board.rows}
    assert planned == {"one": 10, "two": 15}


def test_rows_stand_by_their_best_score(boards):
    for board in boards:
        best = [max(cell.headline.value if cell.headline else -1.0 for cell in row.cells.values()) for row in board.rows]
        assert best == sorted(best, reverse=True)


def test_an_unfinished_run_has_no_difference(boards):
    letters = boards[1]
    assert [row.difference is None for row in sorted(letters.rows, key=lambda row: row.label != "tiny")] == [False, True]


def test_equal_labels_are_told_apart(tmp_path, evaluate_into):
    paths = [tmp_path / "a.sqlite", tmp_path / "b.sqlite"]
    first = evaluate_into(paths[0], "one", label="same")
    evaluate_into(paths[0], "two", label="same")
    evaluate_into(paths[1], "one", label="same")
    (board,) = collect_boards(paths)
    labels = {row.label for row in board.rows}
    assert len(labels) == 3
    assert f"same [{first.run_id[:6]}]" in labels
    assert all(label.startswith("same [") for label in labels)


def test_values_are_json_and_hold_every_identity(boards):
    for board in boards:
        values = board_values(board)
        assert values["board_id"] == board.board_id
        columns = {column["column_id"] for column in values["columns"]}
        assert all(set(row["cells"]) <= columns for row in values["rows"])


def test_one_model_in_two_stores_is_one_row(tmp_path, evaluate_into):
    letters = arithmetic_tasks(problems=4, samples=1, kind="letters")
    first = evaluate_into(tmp_path / "a.sqlite", "one")
    evaluate_into(tmp_path / "b.sqlite", "one", tasks=letters)
    digits, words = collect_boards([tmp_path / "a.sqlite", tmp_path / "b.sqlite"])
    assert {(row.label, row.key) for board in (digits, words) for row in board.rows} == {("one", first.run_id[:12])}


def test_the_same_run_twice_on_one_board_is_two_rows_with_keys_of_their_own(tmp_path, evaluate_into):
    for name in ("a.sqlite", "b.sqlite"):
        run = evaluate_into(tmp_path / name, "one")
    (board,) = collect_boards([tmp_path / "a.sqlite", tmp_path / "b.sqlite"])
    assert {row.key for row in board.rows} == {run.run_id[:12], f"{run.run_id[:12]}-2"}


def test_errors_withhold_the_score_until_they_are_allowed(tmp_path, evaluate_into):
    def fail(request):
        return request.mode == "high" and request.problem_id.endswith("1")

    evaluate_into(tmp_path / "r.sqlite", "one", client=RuleClient(TASKS, name="one", fail=fail))
    for allow_errors in (False, True):
        (board,) = collect_boards([tmp_path / "r.sqlite"], allow_errors=allow_errors)
        none, high = (board.rows[0].cells[column.column_id] for column in board.columns)
        assert none.headline is not None
        assert none.marks == ()
        assert (high.headline is not None) == allow_errors
        assert high.marks == ((ERRORS_LEFT_OUT,) if allow_errors else ())
        assert high.summary.errors == 2
        assert (board.rows[0].difference is not None) == allow_errors
        assert (high.values["score"] is not None) == allow_errors


def test_marks(boards):
    cell = next(iter(boards[0].rows[0].cells.values()))
    evaluation = dataclasses.replace(cell.summary.evaluation, grader_id="livecodebench-strict/1.0 no-sandbox")
    summary = dataclasses.replace(cell.summary, evaluation=evaluation, missing=3, verdicts={**cell.summary.verdicts, "error": 1})
    assert marks_of(cell.summary, has_score=True) == ()
    assert marks_of(summary, has_score=True) == (NO_SANDBOX, ERRORS_LEFT_OUT, PARTIAL)
    assert marks_of(summary, has_score=False) == (NO_SANDBOX, PARTIAL)
    assert marks_of(dataclasses.replace(cell.summary, ungraded=1), has_score=False) == (PARTIAL,)


def test_a_record_that_was_edited_is_not_published(tmp_path, evaluate_into):
    path = tmp_path / "r.sqlite"
    evaluate_into(path, "one")
    connection = sqlite3.connect(path)
    connection.execute("UPDATE grades SET verdict = 'correct' WHERE verdict = 'wrong'")
    connection.commit()
    connection.close()
    with pytest.raises(EvaluationError, match="changed after it was written"):
        collect_boards([path])


def test_nothing_to_show_is_an_error(tmp_path):
    with pytest.raises(EvaluationError, match="no such store"):
        collect_boards([tmp_path / "none.sqlite"])
    with pytest.raises(EvaluationError, match="no evaluation"):
        collect_boards([])
