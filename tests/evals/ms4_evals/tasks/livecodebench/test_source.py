"""The tests that graders get, from files."""

import json
import threading

import pytest
from support.code_rows import code_row, code_test, encoded, recorded_rows, submissions, write_rows

from ms4_evals.graders.livecodebench.problem import CodeTest
from ms4_evals.tasks.livecodebench.rows import iter_rows
from ms4_evals.tasks.livecodebench.source import StoredTests, digest_of_tests
from ms4_train.errors import EvaluationError


def source_of(tmp_path, values, **options):
    rows = list(iter_rows(write_rows(tmp_path / "f.jsonl", values)))
    return rows, StoredTests(rows, **options)


def test_public_tests_come_first(tmp_path):
    _, source = source_of(tmp_path, [code_row("a"), code_row("2727", function="f")])
    problem = source.problem("livecodebench/a")
    assert problem.tests == (CodeTest("1 2\n", "3\n"), CodeTest("3 4\n", "7\n"), CodeTest("5 6\n", "11\n"))
    assert (problem.problem_id, problem.function) == ("a", None)
    assert source.problem("a") is problem
    assert source.problem("livecodebench_reasoning/2727").function == "f"


@pytest.mark.data
def test_every_recorded_test_comes_back(data_folder, tmp_path):
    rows, source = source_of(tmp_path, recorded_rows(data_folder))
    assert len(rows) == 278
    recorded = submissions(data_folder)
    for row in rows:
        found = recorded[row.question_id]
        private = [found["recorded_failing_test"]] if found["recorded_failing_test"] else found["public_tests"]
        assert [vars(test) for test in source.problem(row.question_id).tests] == found["public_tests"] + private


def test_private_tests_as_plain_json(tmp_path):
    tests = [code_test('say "hi"\\n\n', "\u00e9\U0001f600")]
    _, source = source_of(tmp_path, [code_row("a", private_test_cases=json.dumps(tests)), code_row("b", private_test_cases="[]")])
    assert source.problem("a").tests[1:] == (CodeTest('say "hi"\\n\n', "\u00e9\U0001f600"),)
    assert len(source.problem("b").tests) == 1
    path = tmp_path / "raw.jsonl"
    path.write_text(
        json.dumps(code_row("c", private_test_cases=json.dumps(tests, ensure_ascii=False)), ensure_ascii=False), encoding="utf-8"
    )
    assert StoredTests(iter_rows(path)).problem("c").tests[1:] == source.problem("a").tests[1:]


def test_a_problem_without_any_test_is_refused(tmp_path):
    _, source = source_of(tmp_path, [code_row("a", public_test_cases="[]", private_test_cases="[]")])
    with pytest.raises(EvaluationError, match="without tests"):
        source.problem("a")


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"private_test_cases": "nonsense"}, "private_test_cases"),
        ({"private_test_cases": encoded([])[:-8]}, "private_test_cases"),
        ({"public_test_cases": "{}"}, "public_test_cases"),
    ],
)
def test_tests_that_cannot_be_read_are_an_error_with_its_place(tmp_path, values, key):
    _, source = source_of(tmp_path, [code_row("first"), code_row("a", **values)])
    with pytest.raises(EvaluationError, match="tests of a cannot be read") as caught:
        source.problem("a")
    assert (caught.value.line, caught.value.key, caught.value.file) == (2, key, str(tmp_path / "f.jsonl"))
    assert source.problem("first")


def test_unknown_problems_are_refused(tmp_path):
    _, source = source_of(tmp_path, [code_row("a")])
    with pytest.raises(EvaluationError, match="no such problem"):
        source.problem("livecodebench/b")


def test_a_file_that_changed_meanwhile_is_noticed(tmp_path):
    _, source = source_of(tmp_path, [code_row("a"), code_row("b")])
    assert source.problem("a")
    write_rows(tmp_path / "f.jsonl", [code_row("b"), code_row("a", private=[code_test("0 0\n", "0\n")])])
    with pytest.raises(EvaluationError, match="has changed"):
        source.problem("b")
    (tmp_path / "f.jsonl").unlink()
    with pytest.raises(EvaluationError, match="no such file"):
        source.problem("b")


def test_digests_change_with_the_tests_and_nothing_else(tmp_path):
    values = [
        code_row("a"),
        code_row("b", question_content="Another text.", difficulty="hard", contest_date="2023-05-07T00:00:00"),
        code_row("c", private=[code_test("3 4\n", "7\n"), code_test("5 6\n", "12\n")]),
        code_row("d", public=[]),
        code_row("e", metadata='{"func_name": "f"}'),
    ]
    rows, source = source_of(tmp_path, values)
    digests = [digest_of_tests(row) for row in rows]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4
    assert source.decoded == 0


def test_the_cache_is_bounded_and_keeps_what_was_asked_for_last(tmp_path):
    values = [code_row(name, public=[], private=[code_test("x" * 1000, "")]) for name in "abcd"]
    _, source = source_of(tmp_path, values, cache_bytes=2500)
    for name in "abab":
        source.problem(name)
    assert source.decoded == 2
    source.problem("c")  # a leaves
    source.problem("b")
    assert source.decoded == 3
    source.problem("a")
    assert source.decoded == 4
    _, small = source_of(tmp_path, values, cache_bytes=0)
    for name in "aaab":
        small.problem(name)
    assert small.decoded == 2, "the last one is kept whatever its size"


def test_threads_that_ask_for_the_same_problem_decode_it_once(tmp_path):
    values = [code_row(name, private=[code_test("x" * 2_000_000, "y")]) for name in "abc"]
    _, source = source_of(tmp_path, values)
    found = []
    threads = [threading.Thread(target=lambda name=name: found.append(source.problem(name))) for name in "abcabcabcabc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert source.decoded == 3
    assert sorted(problem.problem_id for problem in found) == sorted("abc" * 4)
