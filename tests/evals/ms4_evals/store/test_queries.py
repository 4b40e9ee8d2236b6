"""What reports, status and exports ask a store."""

import sqlite3
import tracemalloc

import pytest
from support.made_stores import failed_sample, fill, made_evaluation, made_run, right_or_wrong, write_store

from ms4_evals.graders.base import Grade
from ms4_evals.store.queries import (
    EXPORT_COLUMNS,
    count_ungraded,
    counts,
    error_examples,
    failure_classes,
    has_samples,
    last_session,
    sample_rows,
)
from ms4_evals.store.results import ResultStore

EVALUATION = made_evaluation(problems=3, samples=3)
RUN = made_run()


def rule(evaluation, problem, index):
    if problem == 0:
        return {"seconds": 2.0, "usage_tokens": 10}, Grade("correct" if index else "wrong", "1", details={"class": "WA"})
    if problem == 1:
        return [failed_sample("timeout"), failed_sample("server"), ({"seconds": 3.0}, None)][index]
    return None


@pytest.fixture
def path(tmp_path):
    return write_store(tmp_path / "r.sqlite", {"made": rule}, [EVALUATION])


def test_counts(path):
    with ResultStore.read(path) as store:
        found = counts(store, RUN.run_id, EVALUATION)
        assert count_ungraded(store, RUN.run_id, EVALUATION) == 1
    assert (found.drawn, found.ungraded, found.errors) == (6, 1, {"server": 1, "timeout": 1})
    assert found.problems == [(2, 3)]
    assert (found.seconds, found.timed) == (9.0, 4)


def test_an_example_of_every_class_of_errors(path):
    with ResultStore.read(path) as store:
        found = error_examples(store, RUN.run_id, EVALUATION)
        assert has_samples(store, RUN.run_id)
        assert not has_samples(store, "another")
    assert list(found) == ["server", "timeout"]
    assert all(isinstance(text, str) and text for text in found.values())


def test_nothing_is_counted_before_anything_is_drawn(tmp_path):
    path = write_store(tmp_path / "r.sqlite", {"made": lambda *_: None}, [EVALUATION])
    with ResultStore.read(path) as store:
        found = counts(store, RUN.run_id, EVALUATION)
    assert (found.drawn, found.ungraded, found.errors, found.problems, found.timed) == (0, 0, {}, [], 0)


def test_failure_classes_leave_out_what_is_correct_and_what_is_no_class(path):
    with ResultStore.read(path) as store:
        assert failure_classes(store, RUN.run_id, EVALUATION) == {"WA": 1}
    for details in ('{"class": 5}', "not json", '{"class": ["WA"]}', "[]", None):
        connection = sqlite3.connect(path)
        connection.execute("UPDATE grades SET details = ?", (details,))
        connection.commit()
        connection.close()
        with ResultStore.read(path) as store:
            assert failure_classes(store, RUN.run_id, EVALUATION) == {}, details


def test_the_last_session_counts_what_came_since(path):
    """Six samples of the first start; the second start draws four more, and a run that came later has a session of its own."""
    more = made_evaluation("more", problems=2, samples=2)
    with ResultStore.open(path) as store:
        session = last_session(store, RUN.run_id)
        assert session is not None
        assert (session.answers, session.tokens, session.seconds) == (4, 30 + 4, 9.0)
        fill(store, RUN, [more], right_or_wrong(lambda *_: True))
        session = last_session(store, RUN.run_id)
        assert session is not None
        assert (session.answers, session.seconds) == (4, 8.0)
        fill(store, made_run("other"), [more], right_or_wrong(lambda *_: True))
        assert last_session(store, RUN.run_id) is None
        assert last_session(store, made_run("other").run_id) is not None


def test_rows_of_every_drawn_sample(path):
    with ResultStore.read(path) as store:
        rows = [dict(zip(EXPORT_COLUMNS, row, strict=True)) for row in sample_rows(store, RUN.run_id, EVALUATION)]
    assert [(row["problem_id"][-1], row["sample_index"]) for row in rows] == [(p, i) for p in "01" for i in range(3)]
    assert [row["verdict"] for row in rows] == ["wrong", "correct", "correct", "error", "error", None]
    assert [row["error_class"] for row in rows] == [None, None, None, "timeout", "server", None]


def test_rows_are_read_one_at_a_time(tmp_path):
    """100 samples of 200 kB in 20 MB: one at a time needs a few of them, and a list of all, the control, needs all."""
    evaluation = made_evaluation(problems=50, samples=2)
    path = write_store(tmp_path / "r.sqlite", {"made": lambda *_: ({"thinking": "x" * 200_000}, Grade("correct", "1"))}, [evaluation])

    def peak(read):
        with ResultStore.read(path) as store:
            tracemalloc.start()
            read(sample_rows(store, RUN.run_id, evaluation))
            size = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return size

    assert peak(lambda rows: sum(1 for _ in rows)) < 2_000_000
    assert peak(list) > 20_000_000


def test_a_snapshot_is_of_one_moment(path):
    with ResultStore.read(path) as reader, ResultStore.open(path) as writer:
        with reader.snapshot():
            before = counts(reader, RUN.run_id, EVALUATION)
            sample = next(iter(writer.ungraded(RUN.run_id, EVALUATION)))
            writer.add_grade(sample[0], sample[1].grading_id, Grade("correct", "1"))
            with reader.snapshot():
                assert counts(reader, RUN.run_id, EVALUATION) == before
        assert counts(reader, RUN.run_id, EVALUATION) != before
