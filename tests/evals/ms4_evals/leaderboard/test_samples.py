"""Tables and texts of samples: every stored sample once, with its texts where the table says, in bounded memory."""

import json
import sqlite3
import tracemalloc

import pytest
from support.sites import MODELS, aime_task, fill_store

from ms4_evals.leaderboard import samples as module
from ms4_evals.leaderboard.collect import collect_boards
from ms4_evals.leaderboard.samples import write_problems, write_samples
from ms4_evals.leaderboard.shards import ShardWriter
from ms4_evals.leaderboard.site_values import OPINIONS, SITE_VERDICTS, board_problems
from ms4_evals.store.queries import EXPORT_COLUMNS, sample_rows
from ms4_evals.store.results import ResultStore


def cells_of(board):
    return [(row, cell) for row in board.rows for cell in row.cells.values()]


def stored(row, cell):
    with ResultStore.read(cell.store) as store:
        return [dict(zip(EXPORT_COLUMNS, values, strict=True)) for values in sample_rows(store, row.run_id, cell.summary.evaluation)]


def table_of(folder, places, read_data):
    table = {}
    for name in places["chunks"]:
        for column, values in read_data(folder / f"{name}.js")[1].items():
            table.setdefault(column, []).extend(values)
    return table


@pytest.mark.parametrize("rows_per_file", [7, 5000])
def test_every_sample_is_there_once_with_its_own_texts(rich_boards, tmp_path, read_data, read_texts, monkeypatch, rows_per_file):
    monkeypatch.setattr(module, "ROWS_PER_FILE", rows_per_file)
    number = 0
    for board in rich_boards:
        problems = board_problems(board)
        for row, cell in cells_of(board):
            folder = tmp_path / str(number)
            number += 1
            folder.mkdir()
            places = write_samples(ShardWriter(folder), "x", row.run_id, cell)
            table, texts = table_of(folder, places, read_data), read_texts(folder, places["stem"])
            expected = stored(row, cell)
            assert len(table["p"]) == len(texts) == len(expected) == cell.summary.evaluation.planned
            for index, sample in enumerate(expected):
                assert problems[table["p"][index]].problem_id == sample["problem_id"]
                assert table["i"][index] == sample["sample_index"]
                assert SITE_VERDICTS[table["v"][index]] == sample["verdict"]
                assert (OPINIONS[table["o"][index]] if table["o"][index] >= 0 else None) == sample["opinion"]
                assert [table[name][index] for name in ("tc", "ac", "tt", "at")] == [
                    sample[name] for name in ("thinking_chars", "answer_chars", "thinking_tokens", "answer_tokens")
                ]
                assert texts[index]["thinking"] == sample["thinking"]
                assert texts[index]["answer"] == sample["answer"]
                assert texts[index].get("extracted") == sample["extracted"]
                assert json.loads(texts[index].get("details", "null")) == json.loads(sample["details"] or "null")
                assert json.loads(texts[index]["facts"])["seed"] in (str(sample["seed"]), sample["seed"])


def test_questions_and_right_answers(rich_boards, tmp_path, read_texts):
    problems = board_problems(rich_boards[1])
    places = write_problems(ShardWriter(tmp_path), "q", problems)
    texts = read_texts(tmp_path, places["stem"])
    assert [texts[index] for index in range(len(problems))] == [
        {"question": item.question, "gold": item.gold, "prompt": item.prompt} for item in problems
    ]
    assert all(item.question in item.prompt for item in problems)
    assert len(places["first"]) == len(places["last"]) == len(problems)


def test_samples_that_wait_and_samples_that_failed_are_shown_as_such(tmp_path, read_data, read_texts):
    path = tmp_path / "r.sqlite"
    fill_store(path, [aime_task(1, 3)], MODELS[:1], scale=0.02)
    (board,) = collect_boards([path])
    connection = sqlite3.connect(path)
    first = "(SELECT sample_id FROM samples WHERE mode = 'none' AND problem_id LIKE '%/01')"
    connection.execute(f"DELETE FROM grades WHERE sample_id = {first}")
    connection.execute("UPDATE samples SET error = 'cut\x1b', error_class = 'connection' WHERE mode = 'none' AND problem_id LIKE '%/02'")
    connection.execute("UPDATE grades SET verdict = 'error' WHERE sample_id = (SELECT sample_id FROM samples WHERE error IS NOT NULL)")
    connection.execute("UPDATE grades SET details = 'no json' WHERE sample_id = (SELECT max(sample_id) FROM samples WHERE mode = 'none')")
    connection.commit()
    connection.close()
    row = board.rows[0]
    places = write_samples(ShardWriter(tmp_path), "x", row.run_id, row.cells[board.columns[0].column_id])
    table, texts = table_of(tmp_path, places, read_data), read_texts(tmp_path, places["stem"])
    assert [SITE_VERDICTS[code] for code in table["v"][:2]] == ["ungraded", "error"]
    assert texts[1]["error"] == "cut\ufffd"
    assert json.loads(texts[1]["facts"])["error_class"] == "connection"
    assert json.loads(texts[2]["details"]) == {"note": "no json"}


def test_an_evaluation_without_samples_has_an_empty_table(tmp_path, read_data):
    path = tmp_path / "r.sqlite"
    fill_store(path, [aime_task(1, 2)], MODELS[:1], scale=0.02)
    connection = sqlite3.connect(path)
    connection.execute("DELETE FROM grades")
    connection.execute("DELETE FROM samples")
    connection.commit()
    connection.close()
    (board,) = collect_boards([path])
    row = board.rows[0]
    places = write_samples(ShardWriter(tmp_path), "x", row.run_id, row.cells[board.columns[0].column_id])
    assert table_of(tmp_path, places, read_data)["p"] == []


def test_texts_are_never_held_all_at_once(tmp_path):
    """40 samples of some 200,000 characters pass through, and the peak stays at a few texts (one read, cleaned, cut and encoded)."""
    path = tmp_path / "r.sqlite"
    fill_store(path, [aime_task(1, 40)], [MODELS[0].__class__("long", (0.5, 0.5), 200_000)], scale=1.0)
    (board,) = collect_boards([path])
    row = board.rows[0]
    cell = row.cells[board.columns[1].column_id]
    total = sum(sample["thinking_chars"] for sample in stored(row, cell))
    longest = max(sample["thinking_chars"] for sample in stored(row, cell))
    writer = ShardWriter(tmp_path)
    tracemalloc.start()
    write_samples(writer, "x", row.run_id, cell)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert writer.num_bytes > total > 5_000_000
    assert peak < 8 * longest < total  # the texts of one sample in its stages, and one file
