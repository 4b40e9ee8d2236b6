"""An evaluation's answers do not depend on how often a server fails: cut, garbled, late, of another model, or not at all.

The server is real and answers by a rule, so every right answer is known. Which attempts fail, and how, is decided by a seed.
"""

from __future__ import annotations

import json
import time
from collections import Counter

import httpx
import pytest
from support.endpoint_requests import answers, quick, requests, section, texts
from support.flaky_answers import STYLES, Rule
from support.flaky_faults import FAULTS
from support.flaky_server import FlakyServer, flaky_process, server_stats

from ms4_evals.clients.endpoint import replies
from ms4_evals.clients.endpoint.client import EndpointClient
from ms4_evals.clients.endpoint.habits import Habits
from ms4_evals.graders.integer import IntegerGrader
from ms4_evals.tasks.base import TaskProblem
from ms4_train.errors import EvaluationError

KIND_OF = {"vllm": "vllm", "sglang": "sglang", "mistral": "mistral", "tags": "openai"}
WITHOUT_WAITING = [name for name in FAULTS if name not in {"hang", "hang-within", "429-seconds", "429-date"}]
"""Faults that cost no time, for quick tests."""

TABLE = {f"What is {left} + {right}?": str(left + right) for left in range(20) for right in range(20)}
QUESTIONS = list(TABLE)


def asked(count: int, max_tokens: int = 4096):
    return requests(count, question=lambda number: QUESTIONS[number % len(QUESTIONS)], max_tokens=max_tokens)


def client(*urls: str, kind: str = "vllm", timeout: float = 10.0, **options) -> EndpointClient:
    return EndpointClient(section(*urls, kind=kind, timeout=timeout, **{"max_attempts": 12, **options}), backoff=quick())


def scores(found) -> dict[str, str]:
    """Verdicts as the run would store them; an error is no verdict."""
    grader = IntegerGrader()
    verdicts = {}
    for number, (name, one) in enumerate(found.items()):
        question = QUESTIONS[int(name[2:6]) % len(QUESTIONS)]
        problem = TaskProblem(f"p/{number}", question, TABLE[question])
        verdicts[name] = "error" if one.error else grader.grade(problem, one.answer, is_truncated=one.finish_reason == "length").verdict
    return verdicts


@pytest.mark.parametrize(("style", "stream"), [*((style, True) for style in STYLES), ("vllm", False)])
def test_with_a_third_of_the_attempts_failing_every_answer_is_as_without(style, stream):
    with FlakyServer(rule=Rule(TABLE), style=style, kinds=WITHOUT_WAITING, seed=3) as server:
        expected = answers(client(server.base_url, kind=KIND_OF[style], stream=stream), asked(60))
        server.faults = 0.3
        server.attempts.clear()
        found = answers(client(server.base_url, kind=KIND_OF[style], stream=stream), asked(60))
    assert texts(found) == texts(expected)
    assert scores(found) == scores(expected)
    assert {"correct", "wrong"} <= set(scores(found).values())
    # Bounded, and none was made behind the client's back.
    assert 70 < server.attempts.total() <= sum(one.attempts for one in found.values()) < 180


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
def test_all_kinds_of_faults_three_hundred_requests_two_servers_in_other_processes(stream, tmp_path):
    (tmp_path / "table.json").write_text(json.dumps(TABLE))
    flaky = ("--table", str(tmp_path / "table.json"), "--faults", "0.3")
    with (
        flaky_process("--table", str(tmp_path / "table.json")) as good,
        flaky_process(*flaky, "--seed", "1") as first,
        flaky_process(*flaky, "--seed", "2") as second,
    ):
        expected = answers(client(good, timeout=2.0, stream=stream), asked(300))
        found = answers(client(first, second, timeout=2.0, stream=stream), asked(300))
        stats = [server_stats(url) for url in (first, second)]
    assert texts(found) == texts(expected)
    assert scores(found) == scores(expected)
    injected = sum((Counter(one["faults"]) for one in stats), Counter())
    assert set(injected) == set(FAULTS)
    assert sum(injected.values()) > 60
    # An attempt whose time is up before it reaches a busy server is one that the server has not seen.
    assert sum(one["attempts"] for one in stats) <= sum(one.attempts for one in found.values()) < 900
    assert max(one["most_in_flight"] for one in stats) <= 64


def test_answers_that_were_cut_by_length_stay_cut_and_are_not_graded():
    with FlakyServer(rule=Rule(TABLE), kinds=WITHOUT_WAITING, faults=0.3, seed=5) as server:
        found = answers(client(server.base_url), asked(40, max_tokens=8))
    thoughts = [one for name, one in found.items() if " high " in name]
    assert thoughts
    assert all((one.finish_reason, one.answer, one.thinking_is_open) == ("length", "", True) for one in thoughts)
    assert {verdict for name, verdict in scores(found).items() if " high " in name} == {"truncated"}


@pytest.mark.parametrize("fault", ["cut-clean", "cut-before-end", "null-content", "empty-choices", "html"])
def test_what_looks_complete_and_is_not_ends_as_an_error_never_as_an_answer(fault):
    with FlakyServer(rule=Rule(TABLE), faults=1.0, kinds=[fault]) as server:
        found = answers(client(server.base_url, max_attempts=3), asked(6))
    assert {(one.error_class, one.attempts, one.answer) for one in found.values()} == {("bad-response", 3, "")}


def without_checks(monkeypatch) -> None:
    """Every check of a reply switched off, as a client that trusts its server has it."""
    monkeypatch.setattr(replies.StreamedReply, "_check_end", lambda self: None)
    monkeypatch.setattr(replies.StreamedReply, "_check_model", lambda self, name: None)
    monkeypatch.setattr(replies, "_require_text", lambda reply: None)
    monkeypatch.setattr(Habits, "learn", lambda self, reply, requested: None)
    monkeypatch.setattr(Habits, "check", lambda self, reply: None)
    original = replies._object

    def lenient(data: bytes):
        try:
            return original(data.decode("utf-8", "replace").encode())
        except replies.RequestFailure:
            return {}

    monkeypatch.setattr(replies, "_object", lenient)


SEEN_IN_TEXT = ["cut-clean", "null-content", "empty-choices", "invalid-utf8", "invalid-json", "duplicate", "html"]


@pytest.mark.parametrize("fault", SEEN_IN_TEXT)
def test_control_without_the_checks_wrong_text_comes_through(monkeypatch, fault):
    with FlakyServer(rule=Rule(TABLE, accuracy=1.0)) as server:
        expected = answers(client(server.base_url), asked(8))
        server.faults, server.kinds = 1.0, (fault,)
        without_checks(monkeypatch)
        found = answers(client(server.base_url, max_attempts=1), asked(8))
    assert not any(one.error for one in found.values())
    assert sum(found[name].thinking + found[name].answer != expected[name].thinking + expected[name].answer for name in found) >= 7


def test_control_without_the_checks_the_score_is_another(monkeypatch):
    with FlakyServer(rule=Rule(TABLE, accuracy=1.0), kinds=WITHOUT_WAITING, seed=3) as server:
        without = Counter(scores(answers(client(server.base_url), asked(60))).values())
        server.faults = 0.3
        without_checks(monkeypatch)
        found = Counter(scores(answers(client(server.base_url), asked(60))).values())
    assert without == {"correct": 60}
    assert found["error"] == 0
    assert found["correct"] < 60


def test_control_a_client_that_does_not_check_takes_half_an_answer_for_one():
    """What a plain reader of the stream, as many harnesses have it, makes of a cut one."""
    with FlakyServer(rule=Rule(TABLE), faults=1.0, kinds=["cut-clean"]) as server:
        body = {"model": server.model, "messages": [{"role": "user", "content": QUESTIONS[77]}], "stream": True}
        with httpx.stream("POST", server.base_url + "/chat/completions", json=body) as response:
            lines = [line for line in response.iter_lines() if line.startswith("data: {")]
    assert response.status_code == 200
    assert lines
    assert not any('"finish_reason": "stop"' in line for line in lines)


def test_a_wrong_key_and_a_wrong_model_are_said_within_five_seconds(monkeypatch):
    monkeypatch.setenv("FLAKY_KEY", "wrong")
    with FlakyServer(key="right") as server:
        wrong = {"servers": [{"base_url": server.base_url, "api_key_env": "FLAKY_KEY"}]}
        for options in (wrong, {"servers": [{"base_url": server.base_url}]}):
            start = time.monotonic()
            with pytest.raises(EvaluationError, match="HTTP 401"):
                answers(EndpointClient(section(**options)), asked(20))
            assert time.monotonic() - start < 5
        server.key = None
        start = time.monotonic()
        with pytest.raises(EvaluationError, match="HTTP 404"):
            answers(EndpointClient(section(servers=[{"base_url": server.base_url, "model": "absent"}])), asked(20))
        assert time.monotonic() - start < 5
