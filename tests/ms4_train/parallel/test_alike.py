"""Ranks that have different values are named with them. Ranks are threads here; processes are in ``test_mesh.py``."""

from __future__ import annotations

import socket

import pytest
from support.rank_threads import on_threads

from ms4_train.errors import ParallelError
from ms4_train.parallel import Mesh
from ms4_train.parallel.alike import differing, ranks_named, require_alike

HERE = socket.gethostname()


def refusals(values, **keys):
    """What each rank raises, one text for all."""
    raised = on_threads(lambda mesh: require_alike(mesh, values[mesh.rank], fix="mend it.", **keys), len(values))
    assert all(isinstance(error, ParallelError) and error.on_all_ranks for error in raised), raised
    assert len({str(error) for error in raised}) == 1
    return str(raised[0])


def test_ranks_that_agree_pass_and_do_not_tell_their_values():
    told = []

    def work(mesh):
        gather = mesh.all_gather_json
        object.__setattr__(mesh, "all_gather_json", lambda value: told.append(value) or gather(value))
        require_alike(mesh, {"a": 1, "b": [1, "é"]} if mesh.rank else {"b": [1, "é"], "a": 1}, fix="")

    assert on_threads(work, 3) == [None] * 3
    assert len(told) == 3
    assert all(set(one) == {"host", "sum"} for one in told)


def test_one_process_agrees_with_itself():
    require_alike(Mesh(), {"a": 1}, fix="")
    assert differing(Mesh(), {"a": 1}) == {}


def test_the_key_the_values_the_ranks_and_the_machines_are_named():
    said = refusals([{"a": 1, "b.c": 0.5}, {"a": 1, "b.c": 1e-9}, {"a": 1, "b.c": 0.5}, {"a": 1, "b.c": 0.5}])
    assert said == f"b.c: differs between ranks: 0.5 on ranks 0, 2-3 (host {HERE}), 1e-09 on rank 1 (host {HERE}). Fix: mend it."


def test_a_few_keys_and_values_are_named_and_the_rest_counted():
    said = refusals([{key: [rank] for key in "abcde"} for rank in range(5)])
    assert said.startswith("a: differs between ranks: [0] on rank 0")
    assert "; c: [0] on rank 0" in said
    assert "[3]" not in said
    assert f"[2] on rank 2 (host {HERE}), 2 more values; 2 more differ." in said
    assert "; 1 more differs." in refusals([dict.fromkeys("abcd", rank) for rank in range(2)])


def test_a_key_that_a_rank_lacks_is_absent_there():
    assert f"1 on rank 0 (host {HERE}), absent on rank 1" in refusals([{"a": 1}, {}])
    assert f"absent on rank 0 (host {HERE}), null on rank 1" in refusals([{}, {"a": None}])


def test_long_values_show_both_ends():
    said = refusals([{"a": f"{'x' * 200}{rank}"} for rank in range(2)])
    assert f"{'x' * 29}0 on rank 0" in said
    assert f"{'x' * 29}1 on rank 1" in said
    assert len(said) < 400


def test_differing_says_the_same_without_a_refusal():
    found = on_threads(lambda mesh: differing(mesh, {"python": f"3.1{mesh.rank}"}))
    assert found == [{"python": f"3.10 on rank 0 (host {HERE}), 3.11 on rank 1 (host {HERE})"}] * 2


@pytest.mark.parametrize(
    ("ranks", "hosts", "named"),
    [
        ([0], "ab", "rank 0 (host a)"),
        ([0, 1], "aab", "ranks 0-1 (host a)"),
        ([0, 2, 3, 4], "aabbc", "ranks 0, 2-4 (hosts a, b, c)"),
        (range(0, 16, 2), "abcdefghijklmnop", "ranks 0, 2, 4, 6, ... (hosts a, c, e, g, ...)"),
    ],
)
def test_ranks_and_machines_in_words(ranks, hosts, named):
    assert ranks_named(ranks, list(hosts)) == named
