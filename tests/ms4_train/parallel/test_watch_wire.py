"""Lines over a real socket: whole, bounded, and never waited for."""

import json
import socket
import time

import pytest

from ms4_train.parallel.watch_wire import MAX_LINE_BYTES, MAX_PENDING_BYTES, Channel


@pytest.fixture
def ends():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
    made = Channel(client), Channel(peer)
    yield made
    for channel in made:
        channel.close()


def received(channel, count=1):
    """The next messages."""
    messages, deadline = [], time.monotonic() + 5
    while len(messages) < count and time.monotonic() < deadline:
        got = channel.receive()
        if got is None:
            return None
        messages += got
        time.sleep(0.005)
    return messages


def test_messages_arrive_in_order(ends):
    left, right = ends
    for number in range(50):
        left.send({"n": number, "text": "ü"})
    assert [message["n"] for message in received(right, 50)] == list(range(50))
    assert right.receive() == []


def test_a_line_in_pieces_is_one_message(ends):
    left, right = ends
    data = json.dumps({"a": 1}).encode() + b"\n"
    left.socket.send(data[:4])
    time.sleep(0.05)
    assert right.receive() == []
    left.socket.send(data[4:])
    assert received(right) == [{"a": 1}]


def test_the_end_comes_after_the_last_message(ends):
    left, right = ends
    left.send({"last": True})
    left.close()
    left.send({"swallowed": True})
    assert received(right) == [{"last": True}]
    assert received(right) is None


def test_a_peer_that_does_not_read_holds_nobody_up(ends):
    left, right = ends
    begin = time.monotonic()
    for _ in range(20000):
        left.send({"news": "x" * 500})
    assert time.monotonic() - begin < 5
    assert left.has_pending
    assert len(left._pending) < MAX_PENDING_BYTES + MAX_LINE_BYTES
    left.send({"must": True}, must_arrive=True)
    last = None
    while left.has_pending or last != {"must": True}:
        messages = right.receive()
        assert messages is not None
        last = messages[-1] if messages else last
        left.flush()


@pytest.mark.parametrize("data", [b"no json\n", b"[1]\n", b"x" * (MAX_LINE_BYTES + 1), b"[" * 5000 + b"\n", b"\xff\xfe\n"])
def test_what_is_no_message_ends_the_connection(ends, data):
    left, right = ends
    left.socket.send(data)
    assert received(right) is None
