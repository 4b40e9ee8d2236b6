"""The centre over real sockets: who may join, and what it tells."""

import json
import socket
import time

import pytest

from ms4_train.parallel.watch_hub import MAX_STRANGERS, Hub

NAMES = ["rank 0", "rank 1", "rank 2"]


@pytest.fixture
def hub():
    made = Hub(socket.create_server(("127.0.0.1", 0)), "the token", NAMES, 60.0)
    made.address = made._listener.getsockname()
    made.start()
    yield made
    made.stop()


def connect(hub, hello):
    connection = socket.create_connection(hub.address, timeout=5)
    connection.sendall(hello if isinstance(hello, bytes) else json.dumps(hello).encode() + b"\n")
    return connection


def join(hub, rank):
    connection = connect(hub, {"token": "the token", "rank": rank})
    reader = connection.makefile()
    assert json.loads(reader.readline()) == {"welcome": True}
    return connection, reader


def until_verdict(reader):
    """Skip what it says of itself."""
    while "verdict" not in (message := json.loads(reader.readline())):
        pass
    return message["verdict"]


@pytest.mark.parametrize(
    "hello",
    [
        {"token": "another", "rank": 1},
        {"token": "", "rank": 1},
        {"rank": 1},
        {"token": ["the token"], "rank": 1},
        {"token": "the token", "rank": 0},
        {"token": "the token", "rank": 3},
        {"token": "the token", "rank": True},
        {"token": "the token"},
        b"GET / HTTP/1.1\r\n\r\n",
        b"x" * 100_000,
    ],
)
def test_strangers_are_turned_away(hub, hello):
    try:
        with connect(hub, hello) as connection:
            assert connection.recv(10) == b""
    except ConnectionError:
        pass
    assert not hub.joined.is_set()


def test_a_rank_joins_once_and_the_door_closes_behind_the_last(hub):
    silent = socket.create_connection(hub.address, timeout=5)
    one, _ = join(hub, 1)
    with connect(hub, {"token": "the token", "rank": 1}) as again:
        assert again.recv(10) == b""
    two, _ = join(hub, 2)
    assert hub.joined.wait(5)
    assert silent.recv(10) == b""
    with pytest.raises(OSError):
        socket.create_connection(hub.address, timeout=1)
    for connection in (one, two, silent):
        connection.close()


def test_it_tells_the_others_of_a_death_with_the_last_place(hub):
    (one, _), (two, reader) = join(hub, 1), join(hub, 2)
    one.sendall(b'{"at": ["backward", 7, 40, 30]}\n')
    one.shutdown(socket.SHUT_RDWR)
    assert until_verdict(reader)["message"] == "rank 1 ended in backward of step 7."
    assert hub.concluded.wait(5)
    hub.verdict = None  # or its thread would end this process
    two.close()


def test_malformed_places_are_ignored(hub):
    (one, _), (two, reader) = join(hub, 1), join(hub, 2)
    for bad in (["lunch", 1, 1, 1], ["data", "1", 1, 1], ["data", 1, 1], "data", [["data"], 1, 1, 1], ["data", True, 1, 1]):
        one.sendall(json.dumps({"at": bad}).encode() + b"\n")
    one.shutdown(socket.SHUT_RDWR)
    assert until_verdict(reader)["message"] == "rank 1 ended in start."
    assert hub.concluded.wait(5)
    hub.verdict = None
    two.close()


def test_a_flood_of_connections_is_bounded(hub):
    flood = [socket.create_connection(hub.address, timeout=5) for _ in range(MAX_STRANGERS + 8)]
    deadline = time.monotonic() + 5
    while len(hub._strangers) < MAX_STRANGERS and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(hub._strangers) == MAX_STRANGERS
    for connection in flood:
        connection.close()
