"""A reply beside the earlier ones of the same server: the name of its model, and chunks against tokens."""

from __future__ import annotations

import random

import pytest

from ms4_evals.clients.endpoint.failures import RequestFailure
from ms4_evals.clients.endpoint.habits import ENOUGH_ANSWERS, Habits
from ms4_evals.clients.endpoint.replies import Reply, Usage


def reply(
    model: str = "m",
    *,
    chunks: int | None = 10,
    tokens: int | None = 11,
    twins: bool = False,
    finish: str = "stop",
    thinking: str = "",
) -> Reply:
    return Reply(thinking, "text", False, finish, model, Usage(5, tokens), chunks, twins)


def is_taken(habits: Habits, one: Reply, requested: str = "m") -> bool:
    try:
        habits.learn(one, requested)
        habits.check(one)
    except RequestFailure as failure:
        return not (failure.error_class == "bad-response" and failure.asks_again)
    return True


def test_the_requested_name_is_taken_and_others_are_not():
    habits = Habits()
    assert [is_taken(habits, reply(name)) for name in ("m", "other", "m", "other", "other", "")] == [True, False, True, False, False, True]


def test_a_wrong_first_answer_is_not_believed():
    habits = Habits()
    assert not is_taken(habits, reply("other"))
    assert is_taken(habits, reply("m"))
    assert not is_taken(habits, reply("other"))


def test_a_server_that_goes_by_another_name_is_believed_the_second_time():
    habits = Habits()
    dated = "m-2026-03-16"
    assert [is_taken(habits, reply(dated)) for _ in range(4)] == [False, True, True, True]
    assert not is_taken(habits, reply("other"))
    assert not is_taken(habits, reply("other"))
    assert is_taken(habits, reply(dated))


@pytest.mark.parametrize("hidden", [0, 1, 3])
@pytest.mark.parametrize("seed", range(20))
def test_doubled_chunks_are_found_once_a_server_is_known(hidden, seed):
    """Streams of one chunk per token, a twentieth of them with one chunk twice, as servers of several ways of counting send them."""
    drawn, habits = random.Random(seed), Habits()
    honest_refused = doubled_taken = 0
    for number in range(400):
        chunks = drawn.randint(5, 500)
        is_doubled = drawn.random() < 0.05
        # Most long thoughts have neighbouring chunks that are equal and right.
        twins = is_doubled or drawn.random() < 0.8
        one = reply(chunks=chunks + is_doubled, tokens=chunks + hidden, twins=twins)
        taken = is_taken(habits, one)
        honest_refused += not taken and not is_doubled
        doubled_taken += taken and is_doubled and number >= ENOUGH_ANSWERS
    assert doubled_taken == 0
    # Before a server is known the usual way of counting is taken for its own; that costs a few attempts, no answer.
    assert honest_refused <= 4


def test_answers_that_were_cut_by_length_have_no_end_token():
    habits = Habits()
    assert all(is_taken(habits, reply(chunks=50, tokens=50, twins=True, finish="length")) for _ in range(10))
    assert not is_taken(habits, reply(chunks=51, tokens=50, twins=True, finish="length"))


def test_servers_that_send_several_tokens_at_a_time_are_left_in_peace():
    drawn, habits = random.Random(3), Habits()
    for _ in range(300):
        chunks = drawn.randint(1, 100)
        assert is_taken(habits, reply(chunks=chunks, tokens=chunks + drawn.randint(1, 60), twins=True))


def test_more_chunks_than_tokens_is_too_many_wherever():
    drawn, habits = random.Random(4), Habits()
    for _ in range(50):
        habits.learn(reply(chunks=10, tokens=10 + drawn.randint(1, 60)), "m")
    assert not is_taken(habits, reply(chunks=31, tokens=30, twins=True))


def test_nothing_is_said_without_twins_usage_or_chunks():
    habits = Habits()
    for one in (reply(chunks=50, tokens=10), reply(tokens=None, twins=True), reply(chunks=None, tokens=1)):
        assert is_taken(habits, one)


def test_thinking_and_the_end_are_sorts_of_their_own():
    """A reasoning parser drops two tags that usage counts; cut answers have no end token, and may have one tag only."""
    habits = Habits()
    honest = [
        reply(tokens=13, thinking="hm", twins=True),
        reply(tokens=11, twins=True),
        reply(tokens=11, finish="length", thinking="hm", twins=True),
    ]
    assert all(is_taken(habits, one) for one in honest * ENOUGH_ANSWERS)
    doubled = [
        reply(tokens=12, thinking="hm", twins=True),
        reply(tokens=10, twins=True),
        reply(tokens=10, finish="length", thinking="hm", twins=True),
    ]
    assert not any(is_taken(habits, one) for one in doubled)


def test_what_is_known_when():
    habits = Habits()
    for number in range(ENOUGH_ANSWERS + 1):
        assert habits.is_known(reply(twins=True)) == (number >= ENOUGH_ANSWERS)
        assert habits.is_known(reply())
        assert habits.is_known(reply(tokens=None, twins=True))
        habits.learn(reply(), "m")
    # Of the first two that differ, the one with fewer chunks per token is the honest one.
    habits = Habits()
    for tokens in (13, 12):
        habits.learn(reply(tokens=tokens, twins=True), "m")
    habits.check(reply(tokens=13, twins=True))
    with pytest.raises(RequestFailure, match="one was sent twice"):
        habits.check(reply(tokens=12, twins=True))
