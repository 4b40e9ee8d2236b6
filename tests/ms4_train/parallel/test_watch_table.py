"""Who is found guilty, from what the ranks said and when."""

import pytest

from ms4_train.errors import RankLostError
from ms4_train.parallel.progress import Place
from ms4_train.parallel.watch_table import Table, exit_code_of

TIMEOUT = 30.0


def table(*places, now=0.0, before=18):
    """Ranks at places (phase, step, count); ``before``, or a fourth value, is the count at which the step began."""
    made = Table([f"rank {rank} (host, process {rank})" for rank in range(len(places))], TIMEOUT, 0.0)
    for rank, (phase, step, count, *first) in enumerate(places):
        made.moved(rank, Place(phase, step, count), *(first or [before]), now)
        made.heard(rank, now)
    return made


def alive(made, now, *but):
    for rank in range(len(made.ranks)):
        if rank not in but:
            made.heard(rank, now)


def test_nobody_is_guilty_before_the_timeout():
    made = table(("forward", 3, 20), ("forward", 3, 20))
    alive(made, 29.9)
    assert made.judge(29.9) is None


def test_the_rank_behind_is_named_with_its_line():
    made = table(("optimizer", 3, 22), ("forward", 3, 20), ("optimizer", 3, 22))
    made.stands(1, "loader.py:12 __next__", False)
    alive(made, 31)
    verdict = made.judge(31)
    where = "rank 1 (host, process 1) hangs in forward of step 3, at loader.py:12 __next__"
    assert verdict.message == f"{where}: no rank got any further for 31 s."
    assert isinstance(verdict.error(), RankLostError)
    assert verdict.error().exit_code == 76


def test_ranks_are_compared_by_step_and_by_phases_of_the_step_not_by_all_phases_since_the_start():
    made = table(("forward", 4, 12, 10), ("forward", 3, 90, 88))  # rank 1 entered many phases on the way to the first step
    alive(made, 31)
    assert "rank 1" in made.judge(31).message
    made = table(("forward", 3, 12, 10), ("forward", 3, 90, 88))
    alive(made, 31)
    assert "all of them are in forward of step 3" in made.judge(31).message


def test_among_equals_the_one_that_waits_for_nobody_is_named():
    made = table(*[("forward", 3, 20)] * 3)
    for rank, waits in enumerate([True, True, False]):
        made.stands(rank, "x.py:1 f", waits)
    alive(made, 31)
    assert made.judge(31).message.startswith("rank 2 (host, process 2) hangs in forward of step 3")


def test_a_silent_rank_is_named_before_those_that_are_behind():
    made = table(("optimizer", 3, 22), ("forward", 3, 20), ("optimizer", 3, 22))
    alive(made, 31, 2)
    assert made.judge(31).message.startswith("rank 2 (host, process 2) hangs in optimizer of step 3: it gave no sign of life for 31 s")


def test_a_silent_rank_is_guilty_although_others_get_on():
    made = table(("forward", 3, 20), ("forward", 3, 20))
    made.moved(0, Place("backward", 3, 21), 18, 29)
    alive(made, 30, 1)
    assert "rank 1" in made.judge(30).message


def test_progress_of_any_rank_begins_the_time_anew():
    made = table(("validation", 3, 20), ("forward", 3, 20))
    made.moved(0, Place("validation", 3, 21), 18, 25)
    alive(made, 50)
    assert made.judge(50) is None
    made.moved(0, Place("validation", 3, 21), 18, 54)  # the same place again is no progress
    alive(made, 56)
    assert made.judge(56) is not None


def test_who_said_goodbye_is_neither_dead_nor_silent():
    made = table(("end", 3, 20), ("end", 3, 20))
    assert not made.are_alone
    made.left(1, 5)
    assert made.are_alone
    assert made.ended(1) is None
    assert made.silent(1, 100) is None
    assert made.ended(0).message == "rank 0 (host, process 0) ended in end of step 3."


def test_the_rank_behind_is_not_accused_where_it_waits_for_one_that_does_not():
    made = table(("optimizer", 3, 22), ("forward", 3, 20))
    made.stands(1, "distributed_c10d.py:1 all_reduce", True)
    made.stands(0, "loop.py:9 f", False)
    alive(made, 31)
    assert made.judge(31).message.startswith("rank 0 (host, process 0) hangs in optimizer of step 3")


def test_many_ranks_in_different_places_are_cut_short():
    made = table(*[("forward", step, 20) for step in range(1, 8)])
    for state in made.ranks:
        state.waits = True
    alive(made, 31)
    assert "rank 0" in made.judge(31).message
    assert made.failed(3, "broken").is_own_error


def test_equals_in_different_phases_are_all_told():
    made = table(("forward", 3, 20), ("backward", 3, 20))
    alive(made, 31)
    message = made.judge(31).message
    assert "rank 0 (host, process 0) is in forward of step 3, rank 1 (host, process 1) is in backward of step 3" in message


@pytest.mark.parametrize(("said", "code"), [(2, 2), (75, 75), (None, 76), (0, 76), (True, 76), (256, 76), ("2", 76)])
def test_the_others_end_with_the_code_of_an_own_error(said, code):
    made = table(("save", 3, 20))
    assert made.failed(3, "broken", exit_code_of({"exit_code": said})).error().exit_code == code
    assert made.ended(0).error().exit_code == 76
