"""Whole and streamed replies: what is an answer, and what only looks like one."""

from __future__ import annotations

import json
import re

import pytest

from ms4_evals.clients.endpoint.events import Event
from ms4_evals.clients.endpoint.failures import RequestFailure
from ms4_evals.clients.endpoint.replies import Reply, StreamedReply, Usage, read_usage, read_whole
from ms4_evals.clients.servers.kinds import KINDS

KIND = KINDS["vllm"]
DONE = b"[DONE]"
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "completion_tokens_details": {"reasoning_tokens": 2}}


def chunk(delta: dict | None, finish: str | None = None, **fields) -> dict:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {"id": "x", "model": "m", "choices": choices, **fields}


def stream(*chunks: dict | bytes, kind=KIND) -> Reply:
    streamed = StreamedReply(kind)
    for one in chunks:
        streamed.feed(Event(one if isinstance(one, bytes) else json.dumps(one).encode()))
    return streamed.finish()


def whole(message: object, finish: object = "stop", **fields) -> Reply:
    reply = {"model": "m", "choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": USAGE, **fields}
    return read_whole(json.dumps(reply).encode(), KIND)


GOOD = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning": "a"}),
    chunk({"reasoning": "b", "content": None}),
    chunk({"content": "42"}),
    chunk({}, "stop"),
    chunk(None, usage=USAGE),
]


def test_a_stream_and_a_whole_reply_say_the_same():
    streamed = stream(*GOOD, DONE)
    assert streamed == Reply("ab", "42", False, "stop", "m", Usage(3, 4, 2), 3, False)
    read = whole({"role": "assistant", "content": "42", "reasoning": "ab"})
    assert (read.thinking, read.answer, read.finish_reason, read.usage) == ("ab", "42", "stop", Usage(3, 4, 2))


def test_ends_that_count():
    assert stream(*GOOD).answer == "42"  # a clean end after usage
    assert stream(*GOOD[:5], DONE).answer == "42"  # [DONE] without usage
    assert stream(*GOOD[:5], kind=KINDS["transformers"]).answer == "42"  # a kind that sends neither
    assert stream(*GOOD, DONE, DONE, b"what comes after is not read").answer == "42"


def refused(*chunks: dict | bytes) -> RequestFailure:
    with pytest.raises(RequestFailure) as caught:
        stream(*chunks)
    return caught.value


@pytest.mark.parametrize("length", range(5))
def test_no_stream_that_ends_before_its_reason_is_an_answer(length):
    for end in ([], [DONE], [chunk(None, usage=USAGE), DONE]):
        assert "before the answer did" in refused(*GOOD[:length], *end).message


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        (GOOD[:5], "without \\[DONE\\]"),
        ([b'{"choices": [{"index": 0, "delta": {"content": "\xff"}}]}'], "UTF-8"),
        ([json.dumps(GOOD[1]).encode()[:-1]], "not JSON"),
        ([b"<html></html>"], "not JSON"),
        ([b"[1, 2]"], "no object"),
        ([b'"text"'], "no object"),
        ([chunk({"content": 5})], "cannot be read"),
        ([chunk({"content": [{"type": "image"}]})], "cannot be read"),
        ([{"model": "m", "choices": [{"index": 1, "delta": {"content": "x"}}]}], "other choices"),
        ([{"model": "m", "choices": [{"delta": {}}, {"delta": {}}]}], "other choices"),
        ([{"model": "m", "choices": {"delta": {}}}], "other choices"),
        ([{"model": "m", "choices": [{"delta": "x"}]}], "delta is no object"),
        ([{"model": 7, "choices": []}], "model name"),
        ([*GOOD[:3], chunk({"content": "9"}, model="other")], "two models"),
        ([*GOOD[:5], chunk({"content": "43"}), DONE], "after the end"),
        ([*GOOD[:4], chunk({}, "strange")], "strange"),
    ],
)
def test_garbled_streams(chunks, message):
    failure = refused(*chunks)
    assert failure.error_class == "bad-response"
    assert failure.asks_again
    assert re.search(message, failure.message)


def test_errors_within_a_stream():
    assert refused(*GOOD[:3], {"error": {"message": "died", "code": 500}}).error_class == "server"
    assert refused({"object": "error", "message": "context length exceeded", "code": 400}).is_too_long
    streamed = StreamedReply(KIND)
    with pytest.raises(RequestFailure, match="boom"):
        streamed.feed(Event(b'{"message": "boom"}', "error"))


@pytest.mark.parametrize(
    ("reason", "error_class", "asks_again"),
    [
        ("content_filter", "refused", False),
        ("tool_calls", "bad-response", False),
        ("function_call", "bad-response", False),
        ("abort", "server", True),
        ("error", "server", True),
        (7, "bad-response", True),
    ],
)
def test_other_ends(reason, error_class, asks_again):
    failure = refused(*GOOD[:4], chunk({}, reason))
    assert (failure.error_class, failure.asks_again) == (error_class, asks_again)
    with pytest.raises(RequestFailure):
        whole({"content": "42"}, reason)


@pytest.mark.parametrize("reason", ["length", "max_tokens", "model_length"])
def test_length(reason):
    cut = stream(*GOOD[:3], chunk({}, reason), DONE)
    assert (cut.thinking, cut.answer, cut.thinking_is_open, cut.finish_reason) == ("ab", "", True, "length")


def test_content_null_with_thinking_alone_is_no_crash_and_no_retry():
    read = whole({"role": "assistant", "content": None, "reasoning": "hm"}, usage={"completion_tokens": 40})
    assert (read.thinking, read.answer, read.thinking_is_open) == ("hm", "", True)


@pytest.mark.parametrize(
    ("message", "finish", "fields"),
    [
        ({"content": None, "reasoning": "hm"}, None, {}),
        (None, "stop", {}),
        ("text", "stop", {}),
        ({"content": "x"}, "stop", {"choices": []}),
        ({"content": "x"}, "stop", {"choices": None}),
        ({"content": "x"}, "stop", {"error": {"message": "x"}}),
    ],
)
def test_whole_replies_that_are_none(message, finish, fields):
    with pytest.raises(RequestFailure):
        whole(message, finish, **fields)


def test_text_that_the_server_swallowed_is_an_error_not_an_empty_answer():
    for usage in ({"completion_tokens": 500}, {"completion_tokens": 500, "completion_tokens_details": {"reasoning_tokens": 3}}):
        with pytest.raises(RequestFailure, match="no text was sent"):
            whole({"content": ""}, usage=usage)
    # An end token at once; a thought that the server keeps to itself; a bound that was met within such a thought.
    assert whole({"content": ""}, usage={"completion_tokens": 1}).answer == ""
    assert whole({"content": ""}, usage={"completion_tokens": 500, "completion_tokens_details": {"reasoning_tokens": 499}}).answer == ""
    assert whole({"content": ""}, "length", usage={"completion_tokens": 500}).finish_reason == "length"


def test_twins_are_neighbours_that_are_equal_byte_for_byte():
    one, other = chunk({"content": "ha"}), chunk({"content": "ho"})
    end = [chunk({}, "stop"), DONE]
    assert stream(one, one, *end).has_twins
    assert not stream(one, other, one, *end).has_twins
    assert not stream(one, chunk({"content": "ha"}, id="y"), *end).has_twins
    assert stream(one, other, one, *end).text_chunks == 3


@pytest.mark.parametrize("value", [None, [], "x", {"completion_tokens": -1}, {"completion_tokens": True}, {"completion_tokens": 10**12}])
def test_usage_that_is_no_sane_count_is_not_told(value):
    assert read_usage(value).completion_tokens is None
    assert read_usage({"completion_tokens": 3, "completion_tokens_details": "x"}) == Usage(None, 3, None)


def test_thinking_is_told_inside_the_details_or_as_sglang_does_beside_them():
    assert read_usage({"completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 4}}).thinking_tokens == 4
    assert read_usage({"completion_tokens": 9, "reasoning_tokens": 5}).thinking_tokens == 5
    assert read_usage({"completion_tokens": 9, "reasoning_tokens": 5, "completion_tokens_details": None}).thinking_tokens == 5


@pytest.mark.parametrize("ends", [("length", "stop"), ("stop", "length")])
def test_an_answer_that_ended_twice_in_different_ways_is_none(ends):
    """Which of the two is meant decides whether it counts as truncated; said twice alike it is one end."""
    with pytest.raises(RequestFailure, match="ended twice"):
        stream(chunk({"content": "a"}), *(chunk({}, end) for end in ends), DONE)
    assert stream(chunk({"content": "a"}), chunk({}, ends[0]), chunk({}, ends[0]), DONE).finish_reason == ends[0]
