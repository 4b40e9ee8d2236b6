"""In which order tokens travel and the shared expert computes, and that whatever is started is waited for."""

import pytest

FORWARD = ["counts", "start", "start", "shared", "wait", "wait", "start", "wait"]  # hidden states and labels there; outputs back
BACKWARD = ["start", "start", "shared gradient", "wait", "wait"]  # gradients of hidden states and weights back
OUTPUTS = ["start", "wait"]  # gradients of outputs there


@pytest.fixture
def orders(exchange_reports):
    """What happened, by kind of pass, for each of four ranks; the first one has no tokens."""
    return [report["order"] for report in exchange_reports[4]]


@pytest.mark.parametrize("kind", ["plain forward", "recomputed forward", "no_grad", "inference", "stopped early forward"])
def test_the_shared_expert_computes_while_tokens_travel(orders, kind):
    for order in orders:
        assert order[kind] == FORWARD


def test_its_backward_runs_while_gradients_travel(orders):
    for order in orders:
        assert order["plain backward"] == OUTPUTS + BACKWARD


def test_a_recomputation_sends_no_outputs_again(orders):
    """It ends with the last tensor that was saved, in the experts, at the same place on ranks with and without tokens."""
    for order in orders:
        assert order["recomputed backward"] == OUTPUTS + FORWARD[:6] + BACKWARD


def test_a_recomputation_that_ends_before_the_arrival_waits_for_it(orders):
    """Only the shared expert is trained here."""
    for order in orders:
        assert order["stopped early backward"] == [*FORWARD[:6], "shared gradient"]
