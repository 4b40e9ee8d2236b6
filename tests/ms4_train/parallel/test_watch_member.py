"""A rank's end over a real socket, against a rank 0 that the test plays."""

import json
import socket

import pytest

from ms4_train.errors import RankLostError
from ms4_train.parallel.progress import Place
from ms4_train.parallel.watch_member import Member


@pytest.fixture
def pair():
    """(the member, rank 0's end of the connection, its reader)"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        hub, _ = server.accept()
    member = Member(client, "the token", 1, ["rank 0 (host, process 7)", "rank 1"], 60.0)
    member.start()
    yield member, hub, hub.makefile()
    member.verdict = None
    member.stop()
    hub.close()


def until(reader, key):
    while key not in (message := json.loads(reader.readline())):
        pass
    return message


def test_it_introduces_itself_says_where_it_is_and_leaves(pair):
    member, hub, reader = pair
    assert json.loads(reader.readline()) == {"token": "the token", "rank": 1}
    hub.sendall(b'{"welcome": true}\n')
    assert member.joined.wait(5)
    member.entered(Place("forward", 3, 900))
    member.entered(Place("backward", 3, 901))
    while until(reader, "at")["at"] != ["backward", 3, 901, 900]:  # step 3 began with phase 900
        pass
    member.leave("error", "it\nbroke " + "x" * 1000)
    said = until(reader, "bye")
    assert said["bye"] == "error"
    assert said["message"].startswith("it broke xxx")
    assert len(said["message"]) < 400
    assert said["exit_code"] == 76


def test_a_verdict_reaches_the_main_thread_at_its_next_phase(pair):
    member, hub, _ = pair
    hub.sendall(json.dumps({"verdict": {"message": "rank 2 ended in save of step 9.", "fix": "look."}}).encode() + b"\n")
    assert member.concluded.wait(5)
    with pytest.raises(RankLostError, match=r"rank 2 ended in save of step 9\. Fix: look\."):
        member.entered(Place("forward", 10, 901))


def test_the_end_of_rank_0_is_a_death_with_its_last_place(pair):
    member, hub, reader = pair
    hub.sendall(b'{"at": ["save", 4, 30, 20]}\n')
    reader.close()
    hub.close()
    assert member.concluded.wait(5)
    assert member.verdict.message == "rank 0 (host, process 7) ended in save of step 4."


def test_a_goodbye_of_rank_0_is_no_death(pair):
    member, hub, reader = pair
    hub.sendall(b'{"bye": "done"}\n')
    reader.close()
    hub.close()
    assert not member.concluded.wait(1)
