"""Places and bytes: what is taken is given back, once, and never more than there is."""

from __future__ import annotations

import threading

import pytest

from ms4_train.serving.admission import Admission
from ms4_train.serving.failures import ApiError


def refusal(function, *arguments) -> ApiError:
    with pytest.raises(ApiError) as caught:
        function(*arguments)
    return caught.value


def test_beyond_its_places_clients_are_told_to_come_back() -> None:
    admission = Admission(2, 100)
    first, second = admission.enter(), admission.enter()
    error = refusal(admission.enter)
    assert (error.status, error.retry_after) == (429, 1)
    first.release()
    first.release()  # no second place for it
    assert admission.answers == 1
    third = admission.enter()
    refusal(admission.enter)
    second.release()
    third.release()
    assert admission.answers == 0


def test_several_answers_take_several_places() -> None:
    admission = Admission(4, 100)
    ticket = admission.enter()
    ticket.add_answers(2)
    assert refusal(admission.enter().add_answers, 1).status == 429
    assert refusal(ticket.add_answers, 9).status == 400  # it would never fit
    ticket.release()
    assert admission.answers == 1


def test_bytes_are_held_over_all_clients() -> None:
    admission = Admission(4, 100)
    one, two = admission.enter(), admission.enter()
    one.hold(60)
    assert refusal(two.hold, 50).status == 429
    assert refusal(two.hold, 101, "messages").status == 413
    one.let_go(30)
    two.hold(50)
    one.release()
    two.release()
    assert (admission.answers, admission.held_bytes) == (0, 0)


def test_a_stopping_server_takes_nobody() -> None:
    admission = Admission(4, 100)
    admission.is_stopping = True
    error = refusal(admission.enter)
    assert (error.status, error.close) == (503, True)


def test_retry_after_follows_how_long_answers_take() -> None:
    admission = Admission(1, 1)
    assert admission.retry_after == 1
    for _ in range(50):
        admission.note_seconds(12.5)
    assert 12 <= admission.retry_after <= 13
    for _ in range(100):
        admission.note_seconds(10_000)
    assert admission.retry_after == 60


def test_counts_survive_many_threads() -> None:
    admission = Admission(10_000, 1 << 40)

    def work() -> None:
        for _ in range(300):
            ticket = admission.enter()
            ticket.hold(7)
            ticket.release()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (admission.answers, admission.held_bytes) == (0, 0)
