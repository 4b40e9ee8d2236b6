"""Waits: Retry-After beside what OpenAI's own client makes of it, and the doubling."""

from __future__ import annotations

import datetime
import functools
import random
import time
from email.utils import format_datetime

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms4_evals.clients.endpoint.retries import LONGEST_RETRY_AFTER, Backoff, retry_after_seconds

NOW = datetime.datetime(2026, 3, 4, 5, 6, 7, tzinfo=datetime.UTC)


@functools.cache
def openai_client() -> openai.OpenAI:
    return openai.OpenAI(api_key="x", base_url="http://127.0.0.1:1/v1")


def openai_seconds(value: str) -> float | None:
    return openai_client()._parse_retry_after_header(httpx2.Headers({"retry-after": value}))


@pytest.mark.parametrize("value", ["0", "1", "7", "1.5", "90"])
def test_seconds_as_openai_reads_them(value):
    assert retry_after_seconds(value) == openai_seconds(value) == float(value)


@pytest.mark.parametrize("ahead", [1, 30, 100])
def test_dates_as_openai_reads_them(ahead):
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=ahead)
    for text in (format_datetime(moment, usegmt=True), format_datetime(moment.astimezone(datetime.timezone(datetime.timedelta(hours=5))))):
        # A date has whole seconds, and the two read the clock one after the other.
        assert retry_after_seconds(text) == pytest.approx(openai_seconds(text), abs=0.5)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("Wed, 04 Mar 2026 05:06:17 GMT", 10.0),
        ("Wed, 04 Mar 2026 05:06:17", 10.0),
        ("Wed, 04 Mar 2026 05:05:00 GMT", 0.0),
        ("Wed, 04 Mar 2036 05:05:00 GMT", LONGEST_RETRY_AFTER),
        ("86400", LONGEST_RETRY_AFTER),
        ("9" * 300, LONGEST_RETRY_AFTER),
        (" 3 ", 3.0),
    ],
)
def test_past_future_and_absurd(value, seconds):
    assert retry_after_seconds(value, NOW) == seconds


@pytest.mark.parametrize(
    "value", [None, "", "soon", "-1", "nan", "inf", "1e9", "٣", "1;2", "Wed, 99 Foo 2026 05:06:17 GMT", "9" * 400, "\x00", "1 second"]
)
def test_garbage_is_ignored(value):
    assert retry_after_seconds(value, NOW) is None


@given(st.text(max_size=60))
def test_any_text_is_a_bounded_wait_or_none(value):
    seconds = retry_after_seconds(value, NOW)
    assert seconds is None or 0 <= seconds <= LONGEST_RETRY_AFTER


def test_waits_double_and_stay_bounded():
    backoff = Backoff(first=0.5, longest=30.0, chance=random.Random(1))
    waits = [[backoff.seconds(failures) for _ in range(200)] for failures in range(1, 12)]
    for failures, drawn in enumerate(waits, 1):
        full = min(0.5 * 2 ** (failures - 1), 30.0)
        assert full / 2 <= min(drawn)
        assert max(drawn) <= full
        # Spread over the upper half: requests that failed together do not return together.
        assert max(drawn) - min(drawn) > full / 3
    assert backoff.seconds(10**6) <= 30.0
    assert backoff.seconds(10**6, is_push_back=False) <= 7.5


def test_never_sooner_than_asked():
    backoff = Backoff(first=0.001, chance=random.Random(2))
    drawn = [backoff.seconds(1, retry_after=5.0) for _ in range(100)]
    assert min(drawn) >= 5.0
    assert max(drawn) <= 5.5


def test_the_clock_is_read_when_no_time_is_given():
    ahead = datetime.datetime.fromtimestamp(time.time() + 20, datetime.UTC)
    assert 18 <= retry_after_seconds(format_datetime(ahead, usegmt=True)) <= 20


def test_a_server_that_asks_for_no_wait_is_not_hammered():
    """``Retry-After: 0``, or a date that is past: the wait is the one that failures make, as without the header."""
    backoff = Backoff(first=2.0, chance=random.Random(3))
    assert min(backoff.seconds(1, retry_after=0.0) for _ in range(100)) >= 1.0
