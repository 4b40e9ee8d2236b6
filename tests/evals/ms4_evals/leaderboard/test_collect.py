"""Boards: what stands side by side, and what never does."""

import dataclasses
import itertools

import pytest
from support.eval_client import RuleClient, arithmetic_tasks, both_modes

from ms4_evals.graders.integer import IntegerGrader
from ms4_evals.leaderboard.collect import board_values, collect_boards, pick_examples
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
        best = [max(cell.summary.score.value for cell in row.cells.values()) for row in board.rows]
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


def test_examples_show_each_verdict_once_and_a_dispute(boards):
    cells = [cell for board in boards for row in board.rows for cell in row.cells.values()]
    for cell in cells:
        verdicts = [sample.verdict for sample in cell.examples]
        assert len(set(verdicts)) == len(verdicts)
    samples = list(itertools.chain.from_iterable(cell.examples for cell in cells))
    disputed = dataclasses.replace(samples[0], sample_id=999, opinion="wrong" if samples[0].verdict == "correct" else "correct")
    assert disputed in pick_examples([samples[0], disputed])


def test_nothing_to_show_is_an_error(tmp_path):
    with pytest.raises(EvaluationError, match="no such store"):
        collect_boards([tmp_path / "none.sqlite"])
    with pytest.raises(EvaluationError, match="no evaluation"):
        collect_boards([])
