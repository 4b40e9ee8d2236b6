"""When a server is left alone and when it is tried again. The clock is a number."""

from __future__ import annotations

from ms4_evals.clients.endpoint.circuit import Circuit


def fail(circuit: Circuit, now: float, times: int = 1) -> None:
    for _ in range(times):
        circuit.sent()
        circuit.failed(now)


def test_opens_after_failures_in_a_row_only():
    circuit = Circuit(threshold=3)
    for _ in range(10):
        fail(circuit, 0.0, 2)
        circuit.succeeded()
    assert circuit.may_send(0.0)
    fail(circuit, 0.0, 3)
    assert not circuit.is_closed
    assert not circuit.may_send(0.99)
    assert circuit.may_send(1.0)


def test_one_probe_at_a_time():
    circuit = Circuit(threshold=1)
    fail(circuit, 0.0)
    assert circuit.may_send(1.0)
    circuit.sent()
    assert not circuit.may_send(50.0)
    circuit.succeeded()
    assert circuit.is_closed
    assert circuit.may_send(50.0)


def test_pauses_double_up_to_a_bound_and_start_over_after_a_success():
    circuit = Circuit(threshold=1, first_pause=1.0, longest_pause=10.0)
    now, pauses = 0.0, []
    for _ in range(7):
        fail(circuit, now)
        pauses.append(circuit.opens_at - now)
        now = circuit.opens_at
    assert pauses == [1, 2, 4, 8, 10, 10, 10]
    circuit.sent()
    circuit.succeeded()
    fail(circuit, now)
    assert circuit.opens_at - now == 1


def test_late_failures_of_requests_sent_before_do_not_lengthen_the_pause():
    circuit = Circuit(threshold=2)
    fail(circuit, 0.0, 2)
    for _ in range(20):
        circuit.failed(0.5)
    assert circuit.opens_at == 1.0


def test_a_cancelled_probe_makes_way_for_another():
    circuit = Circuit(threshold=1)
    fail(circuit, 0.0)
    circuit.sent()
    assert not circuit.may_send(5.0)
    circuit.gave_up()
    assert circuit.may_send(5.0)
