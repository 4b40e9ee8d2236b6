"""Server-sent events, beside httpx2's reader on everything that both take."""

from __future__ import annotations

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms4_evals.clients.endpoint.events import Event, EventReader
from ms4_evals.clients.endpoint.failures import RequestFailure


def read(pieces: list[bytes], **options) -> list[Event]:
    reader = EventReader(**options)
    events = [event for piece in pieces for event in reader.feed(piece)]
    return events + reader.end()


def httpx_events(pieces: list[bytes]) -> list[Event]:
    request = httpx2.Request("GET", "http://127.0.0.1/")
    response = httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=iter(pieces), request=request)
    return [Event(event.data.encode(), event.event if event.event != "message" else "") for event in httpx2.EventSource(response)]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places})
    return [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]


LINES = st.sampled_from(
    [
        'data: {"a": 1}',
        "data:x",
        "data:  two",
        "data",
        "data: é",
        ": kept alive",
        "event: error",
        "id: 7",
        "retry: 10",
        "",
        "other: y",
        "da",
    ]
)


@given(st.lists(LINES, max_size=12), st.sampled_from(["\n", "\r\n", "\r"]), st.lists(st.integers(0, 400), max_size=6))
def test_as_httpx_reads_them(lines, end, places):
    # An empty line after the last, so that nothing is left over: what is left over is where the two differ on purpose.
    data = (end.join([*lines, "", ""])).encode()
    expected = [event for event in httpx_events([data]) if event.data or not event.name]
    found = read(cut(data, places))
    # An event without data is nothing to us; httpx2 hands on those that have an id or a name.
    assert [event.data for event in found if event.data] == [event.data for event in expected if event.data]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_any_cut_gives_the_same_events(end):
    data = end.join(
        [b"\xef\xbb\xbfdata: {", b'data: "x"}', b"", b": ping", b"", b"event: error", b"data: 2", b"", b"data: [DONE]", b"", b""]
    )
    expected = [Event(b'{\n"x"}'), Event(b"2", "error"), Event(b"[DONE]")]
    for place in range(len(data) + 1):
        assert read([data[:place], data[place:]]) == expected
    assert read([data[place : place + 1] for place in range(len(data))]) == expected


def test_the_last_line_end_may_be_missing():
    for ending in (b"", b"\n", b"\r", b"\r\n"):
        assert read([b"data: 1\n\ndata: [DONE]" + ending]) == [Event(b"1"), Event(b"[DONE]")]


def test_bytes_stay_as_they_are():
    assert read([b"data: \xff\xfe\x00\n\n"]) == [Event(b"\xff\xfe\x00")]
    # The control: a reader that decodes leniently turns them into text that nobody sent.
    assert "�" in httpx_events([b"data: \xff\xfe\n\n"])[0].data.decode()


@pytest.mark.parametrize("pieces", [[b"data: " + b"x" * 200], [b"data: " + b"x" * 60 + b"\n"] * 3, [b"x" * 60] * 3])
def test_an_endless_event_is_refused(pieces):
    with pytest.raises(RequestFailure, match="more than 150 bytes") as caught:
        read(pieces, max_event_bytes=150)
    assert caught.value.error_class == "bad-response"
