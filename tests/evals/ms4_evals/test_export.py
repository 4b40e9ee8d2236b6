"""Exports read back with pandas, pyarrow and json: every sample, every character, in bounded memory."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from support.made_stores import failed_sample, fill, made_evaluation, made_problems, made_run, write_store

from ms4_evals.export import EXPORT_FORMAT, SCHEMA, export_samples
from ms4_evals.graders.base import Grade
from ms4_evals.store.results import ResultStore
from ms4_evals.token_counts import TOKENIZER_NAME
from ms4_train.errors import EvaluationError, StorageError
from ms4_train.untrusted import iter_json_lines

HOSTILE = [
    "",
    "\x00 nul \x1b[31m escape \x7f",
    "lines\nof\r\nall\x0bkinds\x0c\x1c\x1d\x1e\x85\u2028\u2029 end",
    '</script><script>alert("1")</script>\\',
    "\u202ereversed\u202c \ufeff \ufffd \U0001f4a9 \U0010ffff",
    '{"a": [1, NaN]} \\u0000 \\ud800',
    ",;\t\"'`=cmd|' /C calc'!A0",
]
EVALUATION = made_evaluation("code", "high", made_problems("code", len(HOSTILE), lambda i: {"difficulty": "hard", "day": i}), 3)


def rule(evaluation, problem, index):
    """One graded sample, one error, one that waits for its verdict."""
    text = HOSTILE[problem]
    if index == 1:
        return failed_sample("refused")
    values = {"thinking": text, "answer": text * 2, "cost": 0.1, "usage_tokens": 2**40 + problem, "thinking_is_open": index // 2}
    return values, Grade("wrong", text, details={"class": text, "nested": [text, 1.5, None]}, opinion="correct") if index == 0 else None


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("export") / "r.sqlite", {"made": rule, "other": rule}, [EVALUATION])


def exported(path, out, file_format, **options):
    with ResultStore.read(path) as store:
        return export_samples(store, out, file_format, **options)


def check(rows):
    """Rows as dictionaries, nested values parsed: everything that was written is there, to the character."""
    assert len(rows) == 2 * 3 * len(HOSTILE)
    assert [(row["label"], row["problem_id"], row["sample_index"]) for row in rows] == [
        (label, problem.problem_id, index) for label in ("made", "other") for problem in EVALUATION.problems for index in range(3)
    ]
    for row in rows:
        problem, index = int(row["problem_id"][-3:]), row["sample_index"]
        text = HOSTILE[problem]
        assert list(row) == list(SCHEMA)
        assert row["facts"] == {"difficulty": "hard", "day": problem}
        assert row["sampling"] == dict(EVALUATION.sampling)
        assert (row["column_id"], row["gold"], row["mode"]) == (EVALUATION.column_id, str(problem), "high")
        if index == 1:
            assert (row["verdict"], row["error_class"], row["answer"], row["cost"], row["details"]) == ("error", "refused", "", None, None)
            continue
        assert (row["thinking"], row["answer"], row["error"]) == (text, text * 2, None)
        assert (row["usage_tokens"], row["cost"], row["thinking_is_open"]) == (2**40 + problem, 0.1, index == 2)
        if index == 0:
            assert (row["verdict"], row["extracted"], row["opinion"]) == ("wrong", text, "correct")
            assert row["details"] == {"class": text, "nested": [text, 1.5, None]}
        else:
            assert (row["verdict"], row["extracted"], row["opinion"], row["details"]) == (None, None, None, None)


def test_json_lines_as_json_reads_them(path, tmp_path):
    out = tmp_path / "new" / "samples.jsonl"
    assert exported(path, out, "jsonl") == 6 * len(HOSTILE)
    check([json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()])
    check([row for _, row in iter_json_lines(out)])


def test_json_lines_as_pandas_reads_them(path, tmp_path):
    out = tmp_path / "samples.jsonl"
    exported(path, out, "jsonl")
    frame = pd.read_json(out, lines=True, dtype=False, convert_dates=False)
    assert list(frame.columns) == list(SCHEMA)
    assert frame["answer"].tolist()[: 3 * len(HOSTILE) : 3] == [text * 2 for text in HOSTILE]
    assert frame["verdict"].value_counts().to_dict() == {"wrong": 2 * len(HOSTILE), "error": 2 * len(HOSTILE)}


def nested(row):
    return {name: json.loads(value) if value is not None and SCHEMA[name].startswith("nested") else value for name, value in row.items()}


def test_parquet_as_pyarrow_reads_it(path, tmp_path, monkeypatch):
    monkeypatch.setattr("ms4_evals.export._GROUP_ROWS", 5)
    out = tmp_path / "samples.parquet"
    assert exported(path, out, "parquet") == 6 * len(HOSTILE)
    table = pq.read_table(out)
    check([nested(row) for row in table.to_pylist()])
    assert pq.ParquetFile(out).num_row_groups == -(-6 * len(HOSTILE) // 5)
    assert table.schema.metadata[b"format"].decode() == EXPORT_FORMAT
    assert table.schema.metadata[b"token_counter"].decode() == TOKENIZER_NAME
    assert {field.name: field.metadata[b"meaning"].decode() for field in table.schema} == dict(SCHEMA)


def test_parquet_as_pandas_reads_it(path, tmp_path):
    """Scores out of the export equal the store's: the mean of right samples per problem, errors left out."""
    out = tmp_path / "samples.parquet"
    exported(path, out, "parquet")
    frame = pd.read_parquet(out)
    graded = frame[frame["verdict"].notna() & (frame["verdict"] != "error")]
    assert len(graded) == 2 * len(HOSTILE)
    assert (graded["verdict"] == "correct").groupby([graded["run_id"], graded["problem_id"]]).mean().sum() == 0
    assert graded["thinking"].tolist() == HOSTILE * 2


def test_one_run_only(path, tmp_path):
    out = tmp_path / "samples.jsonl"
    assert exported(path, out, "jsonl", run_id=made_run("other").run_id) == 3 * len(HOSTILE)
    assert {json.loads(line)["label"] for line in out.read_text().splitlines()} == {"other"}


def test_a_sample_that_two_graders_judged_stands_there_twice(tmp_path):
    """The same prompts and sampling under another grader: two columns, one sample."""
    again = made_evaluation("code", "high", EVALUATION.problems, 3, grader_id="integer-box/2.0")
    with ResultStore.open(tmp_path / "r.sqlite") as store:
        fill(store, made_run(), [EVALUATION], rule)
        store.register(made_run(), {}, {}, [again])
        export_samples(store, tmp_path / "s.jsonl", "jsonl")
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * len({row["sample_id"] for row in rows}) == 6 * len(HOSTILE)
    assert {row["grader"] for row in rows} == {EVALUATION.grader_id, again.grader_id}


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_nothing_to_export_leaves_no_file(tmp_path, file_format):
    path = write_store(tmp_path / "r.sqlite", {"made": lambda *_: None}, [EVALUATION])
    before = set(tmp_path.iterdir())
    with pytest.raises(EvaluationError, match="no samples"):
        exported(path, tmp_path / "out", file_format)
    assert set(tmp_path.iterdir()) == before


def test_a_file_that_cannot_be_written_is_an_error_and_leaves_nothing(path, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        exported(path, tmp_path / "file" / "out.jsonl", "jsonl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(EvaluationError, match="not a regular file"):
        exported(path, tmp_path / "folder", "jsonl")
    assert {item.name for item in tmp_path.iterdir()} == {"file", "folder"}


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_a_failure_in_the_middle_leaves_the_old_file(path, tmp_path, monkeypatch, file_format):
    out = tmp_path / "out"
    out.write_text("old")

    def fail(*arguments, **values):
        yield {name: "{}" if words.startswith("nested") else None for name, words in SCHEMA.items()}
        raise EvaluationError("broken")

    monkeypatch.setattr("ms4_evals.export.iter_samples", fail)
    with pytest.raises(EvaluationError, match="broken"):
        exported(path, out, file_format)
    assert out.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


MEMORY_SCRIPT = """
import sys
from pathlib import Path
from ms4_evals import export
from ms4_evals.store.results import ResultStore
import pyarrow.parquet
export._GROUP_CHARACTERS = 2_000_000
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
before = peak()
with ResultStore.read(sys.argv[1]) as store:
    if sys.argv[3] == "all at once":
        rows = list(export.iter_samples(store))
    else:
        export.export_samples(store, Path(sys.argv[2]), sys.argv[3])
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell a process's peak memory")
def test_memory_does_not_grow_with_the_store(tmp_path):
    """A store of 120 MB (240 samples of 500 kB) in other processes, in groups of two million characters.

    JSON lines may grow by 40 MiB, Parquet by 100: measured are 7, and 70 whether the store has 60 or 240 MB, most of which the library
    takes for itself. Holding all rows, the control, takes 120 MB and more.
    """
    evaluation = made_evaluation("t", "high", made_problems("t", 120), 2)
    text = "thought " * 62_500
    path = write_store(tmp_path / "r.sqlite", {"made": lambda e, p, i: ({"thinking": f"{p} {text}"}, Grade("correct", "1"))}, [evaluation])
    grown = {}
    for way in ("jsonl", "parquet", "all at once"):
        command = [sys.executable, "-c", MEMORY_SCRIPT, str(path), str(tmp_path / f"out.{way}"), way]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env={"PYTHONPATH": ":".join(sys.path)})
        grown[way] = int(done.stdout)
    assert (tmp_path / "out.jsonl").stat().st_size > 240 * len(text)
    assert pq.ParquetFile(tmp_path / "out.parquet").metadata.num_rows == 240
    assert grown["jsonl"] < 40, grown
    assert grown["parquet"] < 100, grown
    assert grown["all at once"] > 114, grown
