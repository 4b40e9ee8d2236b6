"""The scheduler's rule, driven without a model: budgets, order, gapless slots, no starvation."""

from __future__ import annotations

import random
from typing import cast

from ms4_train.inference.detokenize import EngineTokenizer, StopMatcher
from ms4_train.inference.request import GenerationRequest
from ms4_train.inference.scheduler import Piece, Scheduler, Sequence


def make_sequence(index: int, prompt: int) -> Sequence:
    matcher = StopMatcher(cast(EngineTokenizer, None), ())
    return Sequence(GenerationRequest(str(index), (1,) * prompt), index, matcher)


def compute(pieces: list[Piece]) -> None:
    """What the session does with a step: everything scheduled is computed, complete sequences get a token."""
    for piece in pieces:
        chooses = piece.chooses
        piece.sequence.computed = piece.start + piece.length
        if chooses:
            piece.sequence.token_ids.append(1)


def shape(pieces: list[Piece]) -> list[tuple[int, int, int]]:
    return [(piece.sequence.index, piece.start, piece.length) for piece in pieces]


def scheduler_with(prompts: list[int], *, max_running: int, token_budget: int) -> Scheduler:
    scheduler = Scheduler(max_running=max_running, token_budget=token_budget)
    for index, prompt in enumerate(prompts):
        scheduler.add(make_sequence(index, prompt))
    return scheduler


def test_prompts_start_whole_in_order_and_then_decode_together() -> None:
    scheduler = scheduler_with([5, 3, 4], max_running=8, token_budget=10)
    first = scheduler.next_step()
    assert shape(first) == [(0, 0, 5), (1, 0, 3)]  # the third would exceed the budget and is not split
    compute(first)
    second = scheduler.next_step()
    assert shape(second) == [(0, 5, 1), (1, 3, 1), (2, 0, 4)]
    compute(second)
    assert shape(scheduler.next_step()) == [(0, 6, 1), (1, 4, 1), (2, 4, 1)]


def test_a_prompt_longer_than_the_budget_is_computed_in_parts_beside_the_decodes() -> None:
    scheduler = scheduler_with([4, 25, 3], max_running=8, token_budget=10)
    first = scheduler.next_step()
    assert shape(first) == [(0, 0, 4)]
    compute(first)
    parts = []
    for _ in range(3):
        pieces = scheduler.next_step()
        assert pieces[0].length == 1
        assert sum(piece.length for piece in pieces) <= 10
        parts += shape(pieces)[1:]
        compute(pieces)
    assert parts == [(1, 0, 9), (1, 9, 9), (1, 18, 7)]
    assert shape(scheduler.next_step())[-1] == (2, 0, 3)


def test_a_finished_sequence_frees_its_slot_at_once_and_the_last_one_moves_there() -> None:
    scheduler = scheduler_with([2, 3, 4, 5], max_running=3, token_budget=100)
    pieces = scheduler.next_step()
    compute(pieces)
    sequences = [piece.sequence for piece in pieces]
    move = scheduler.finish(sequences[0])
    assert move is not None
    assert (move.source, move.target, move.length) == (2, 0, 4)
    assert [sequence.slot for sequence in sequences[1:]] == [1, 0]
    after = scheduler.next_step()
    assert shape(after) == [(2, 4, 1), (1, 3, 1), (3, 0, 5)]
    assert scheduler.finish(after[-1].sequence) is None


def test_random_traffic_ends_stays_within_bounds_and_keeps_slots_gapless() -> None:
    rng = random.Random(5)
    prompts = [rng.randint(1, 60) for _ in range(60)]
    wanted = [rng.randint(1, 12) for _ in prompts]
    scheduler = scheduler_with(prompts, max_running=7, token_budget=16)
    started: list[int] = []
    finished = 0
    for _ in range(5000):
        pieces = scheduler.next_step()
        if not pieces:
            break
        assert sum(piece.length for piece in pieces) <= 16
        assert scheduler.num_running <= 7
        assert sorted(piece.sequence.slot for piece in pieces) == [piece.sequence.slot for piece in pieces]
        assert all(piece.length == 1 for piece in pieces if piece.sequence.num_generated), "a decode was left out or split"
        started += [piece.sequence.index for piece in pieces if piece.start == 0]
        compute(pieces)
        for piece in sorted(pieces, key=lambda piece: -piece.sequence.slot):
            if piece.sequence.num_generated == wanted[piece.sequence.index]:
                scheduler.finish(piece.sequence)
                finished += 1
    assert finished == len(prompts)
    assert started == list(range(60))
    assert scheduler.num_running == scheduler.num_waiting == 0


def test_budget_equal_to_the_slots_still_lets_a_prompt_through() -> None:
    scheduler = scheduler_with([1, 9], max_running=2, token_budget=2)
    lengths = []
    for _ in range(12):
        pieces = scheduler.next_step()
        lengths.append([piece.length for piece in pieces])
        compute(pieces)
    assert lengths[0] == [1]
    assert lengths[1:10] == [[1, 1]] * 9


def test_a_nearly_full_batch_holds_new_prompts_until_several_can_start_or_some_steps_have_passed() -> None:
    scheduler = scheduler_with([2] * 40, max_running=16, token_budget=100)
    pieces = scheduler.next_step()
    assert len(pieces) == 16
    compute(pieces)
    scheduler.finish(pieces[3].sequence)
    waited = 0
    while scheduler.num_running == 15:
        compute(scheduler.next_step())
        waited += 1
    assert waited == 17, "one free slot of 16 is taken after 16 steps of holding"
    pieces = scheduler.next_step()
    compute(pieces)
    for piece in pieces[-2:]:
        scheduler.finish(piece.sequence)
    assert len([piece for piece in scheduler.next_step() if piece.start == 0]) == 2, "two of 16 free slots are taken at once"


def test_a_batch_with_room_starts_new_prompts_at_once() -> None:
    scheduler = scheduler_with([3], max_running=16, token_budget=100)
    compute(scheduler.next_step())
    scheduler.add(make_sequence(1, 4))
    assert shape(scheduler.next_step()) == [(0, 3, 1), (1, 0, 4)]
