"""The values of the site: every number of the boards, every identity, and nothing that could steer a page."""

import dataclasses
import json

import pytest

from ms4_evals.leaderboard.shards import script_json
from ms4_evals.leaderboard.site_values import SITE_VERDICTS, board_details, board_problems, cell_name, clean_values, site_values


def details_of(board):
    names = [cell_name(row, column) for row in range(len(board.rows)) for column in range(len(board.columns))]
    return board_details(board, {"stem": "q", "first": [], "last": []}, {name: {"stem": "t", "chunks": []} for name in names})


def test_scores_and_lengths_are_those_of_the_boards(rich_boards):
    values = site_values(rich_boards, title="T", data="data-0")
    assert [board["title"] for board in values["boards"]] == [board.title for board in rich_boards]
    assert values["samples"] == 2 * 2 * (20 + 40 + 5)
    for board, shown in zip(rich_boards, values["boards"], strict=True):
        assert shown["id"] == board.board_id[:12]
        for row, shown_row in zip(board.rows, shown["rows"], strict=True):
            assert values["models"][shown_row["model"]]["label"] == row.label
            assert shown_row["difference"][0] == pytest.approx(row.difference.value, abs=1e-6)
            assert shown_row["tests"][2] == pytest.approx(row.pairing.mcnemar.p_value, rel=1e-3)
            for column, cell in zip(board.columns, shown_row["cells"], strict=True):
                summary = row.cells[column.column_id].summary
                assert cell["score"] == pytest.approx([summary.score.value, summary.score.low, summary.score.high], abs=1e-6)
                assert cell["lengths"]["total_chars"][0] == pytest.approx(summary.lengths["total_chars"]["all"].mean)
                assert (cell["graded"], cell["planned"], cell["marks"]) == (summary.graded, summary.evaluation.planned, [])


def test_models_are_the_same_on_every_board_and_have_keys_of_their_own(rich_boards):
    values = site_values(rich_boards, title="T", data="data-0")
    assert len({model["key"] for model in values["models"]}) == len(values["models"]) == 2
    assert [model["index"] for model in values["models"]] == [0, 1]


def test_an_unfinished_cell_has_no_score(boards):
    letters = site_values(boards, title="T", data="data-0")["boards"][1]
    scores = [cell["score"] for row in letters["rows"] for cell in row["cells"]]
    assert scores.count(None) == 2
    unfinished = next(row for row in letters["rows"] if row["cells"][0]["score"] is None)
    assert unfinished["difference"] is None
    assert unfinished["cells"][0]["errors"] == 1


def test_published_scores_are_apart(rich_boards):
    values = site_values(rich_boards, title="T", data="data-0")
    for board in values["boards"]:
        published = [values["published"][index] for index in board["published"]]
        assert published
        assert not {item["model"] for item in published} & {model["label"] for model in values["models"] if model["label"] == "x"}
    assert all(item["source"] for item in values["published"])
    assert len({json.dumps(item) for item in values["published"]}) == len(values["published"])


def test_details_name_every_identity_in_full(rich_boards):
    for board in rich_boards:
        details = details_of(board)
        assert details["board_id"] == board.board_id
        assert details["columns"] == [column.column_id for column in board.columns]
        assert [model["run_id"] for model in details["models"]] == [row.run_id for row in board.rows]
        assert all(model["model"] == row.run.model for model, row in zip(details["models"], board.rows, strict=True))
        assert all(model["versions"] == [{"ms4-train": "0.1.0", "torch": "2.13.0"}] for model in details["models"])
        assert len(details["data_id"]) == len(details["prompts_id"]) == 64


def test_the_identity_of_the_data_is_of_questions_and_right_answers(rich_boards):
    board = rich_boards[0]
    row = board.rows[0]
    base = details_of(board)["data_id"]

    def changed(**values):
        problems = (dataclasses.replace(board_problems(board)[0], **values), *board_problems(board)[1:])

        def edited(cell):
            evaluation = dataclasses.replace(cell.summary.evaluation, problems=problems)
            return dataclasses.replace(cell, summary=dataclasses.replace(cell.summary, evaluation=evaluation))

        cells = {key: edited(cell) for key, cell in row.cells.items()}
        return details_of(dataclasses.replace(board, rows=(dataclasses.replace(row, cells=cells),)))["data_id"]

    assert changed() == base
    assert base not in (changed(gold="1"), changed(question="?"))


def test_breakdowns_and_problems(rich_boards):
    details = details_of(rich_boards[1])
    assert set(details["cells"]["0-0"]["breakdowns"]) >= {"difficulty", "platform", "month", "errata"}
    assert details["problems"]["facts"][7]["errata"] == "multi-answer"
    assert details["cells"]["0-0"]["without_errata"] is not None
    assert details["cells"]["0-0"]["second_grader"]["name"] == "livecodebench-official"
    means = details["cells"]["0-1"]["problem_means"]
    assert len(means) == len(details["problems"]["ids"]) == 20
    score = next(iter(rich_boards[1].rows)).cells[rich_boards[1].columns[1].column_id].summary.score.value
    assert sum(means) / len(means) == pytest.approx(score)


def test_hostile_labels_are_plain_values(boards):
    text = script_json(site_values(boards, title="</title>", data="data-0"))
    assert "<" not in text
    assert "alert('x')" in text


def test_clean_values():
    assert clean_values({"a\x00": ["\x1b", 1, None, {"b": "\u202e"}]}) == {"a\ufffd": ["\ufffd", 1, None, {"b": "\ufffd"}]}


def test_a_sample_that_waits_for_its_verdict_has_a_word_of_its_own():
    assert SITE_VERDICTS[-1] == "ungraded"
