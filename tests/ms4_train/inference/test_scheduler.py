"""The scheduler's rule, driven without a model: budgets, order, prefixes, forks, preemption, no starvation, no lost block."""

from __future__ import annotations

import random
from typing import cast

from ms4_train.inference.blocks import BlockPool, first_name
from ms4_train.inference.detokenize import EngineTokenizer, StopMatcher
from ms4_train.inference.request import GenerationRequest
from ms4_train.inference.sampling_params import SamplingParams
from ms4_train.inference.scheduler import Scheduler, Step
from ms4_train.inference.sequence import Sequence
from ms4_train.inference.thinking import Thought

SIZE = 4


def make_sequence(
    name: int, prompt: list[int], *, n: int = 1, priority: int = 0, max_tokens: int = 8, scored: bool = False
) -> list[Sequence]:
    sampling = SamplingParams(max_tokens=max_tokens, prompt_logprobs=0 if scored else None)
    request = GenerationRequest(str(name), tuple(prompt), sampling, n=n, priority=priority)
    made: list[Sequence] = []
    for index in range(n):
        matcher = StopMatcher(cast(EngineTokenizer, None), ())
        leader = made[0] if made else None
        made.append(Sequence(request, index, index, matcher, Thought(None, None), root=first_name(""), leader=leader))
    return made


class Driver:
    """What the engine does with steps: computes them, lets complete sequences choose a token, takes out those that have ended.

    It keeps what every block would hold, token by token, and so notices when a sequence would read what is not its own.
    """

    def __init__(self, *, blocks: int = 64, max_running: int = 8, token_budget: int = 10, caches: bool = True) -> None:
        self.pool = BlockPool(blocks, caches=caches)
        self.scheduler = Scheduler(self.pool, block_size=SIZE, max_running=max_running, token_budget=token_budget)
        self.memory: dict[tuple[int, int], int] = {}
        self.ended: list[Sequence] = []
        self.computed = 0

    def add(self, sequences: list[Sequence]) -> list[Sequence]:
        for sequence in sequences:
            self.scheduler.add(sequence)
        return sequences

    def step(self) -> list[tuple[int, int, int, int]]:
        step = self.scheduler.next_step()
        self._copy(step)
        for piece in step.pieces:
            sequence = piece.sequence
            for position in range(piece.start, piece.start + piece.length):
                block = sequence.blocks[position // SIZE]
                assert not self.pool.is_shared(block), "a shared block is written to"
                self.memory[block, position % SIZE] = sequence.token_ids[position]
        choosing = [piece.sequence for piece in step.pieces if piece.chooses]
        for piece in step.pieces:
            sequence, stop = piece.sequence, piece.start + piece.length
            held = [self.memory[sequence.blocks[position // SIZE], position % SIZE] for position in range(stop)]
            assert held == sequence.token_ids[:stop], "the cache holds another sequence's tokens"
        shape = [(int(piece.sequence.request.request_id), piece.sequence.index, piece.start, piece.length) for piece in step.pieces]
        self.computed += sum(length for *_, length in shape)
        self.scheduler.finish_step(step)
        for sequence in choosing:
            token = (sum(sequence.token_ids) * 31 + sequence.seed) % 997
            sequence.token_ids.append(token)
            sequence.generated_ids.append(token)
            if len(sequence.generated_ids) == sequence.params.max_tokens:
                self.scheduler.remove(sequence)
                self.ended.append(sequence)
        return shape

    def _copy(self, step: Step) -> None:
        for source, target in step.copies:
            for offset in range(SIZE):
                if (source, offset) in self.memory:
                    self.memory[target, offset] = self.memory[source, offset]

    def run(self) -> None:
        for _ in range(10_000):
            if not self.step() and not self.scheduler.num_waiting:
                return
        raise AssertionError("it never ends")


def test_prompts_start_in_order_share_the_budget_and_then_decode_together() -> None:
    driver = Driver()
    for name, length in enumerate((5, 3, 4)):
        driver.add(make_sequence(name, [10 * name + i for i in range(length)]))
    assert driver.step() == [(0, 0, 0, 5), (1, 0, 0, 3), (2, 0, 0, 2)]
    assert driver.step() == [(0, 0, 5, 1), (1, 0, 3, 1), (2, 0, 2, 2)]
    assert driver.step() == [(0, 0, 6, 1), (1, 0, 4, 1), (2, 0, 4, 1)]


def test_a_long_prompt_does_not_hold_up_decodes() -> None:
    driver = Driver()
    driver.add(make_sequence(0, [1, 2, 3, 4]))
    driver.step()
    driver.add(make_sequence(1, list(range(100, 125))))
    parts = []
    for _ in range(3):
        shape = driver.step()
        assert shape[0][3] == 1
        assert sum(length for *_, length in shape) <= 10
        parts.append(shape[1][2:])
    assert parts == [(0, 9), (9, 9), (18, 7)]


def test_priority_comes_before_arrival() -> None:
    driver = Driver(max_running=1)
    for name, priority in ((0, 0), (1, 5), (2, -1)):
        driver.add(make_sequence(name, [name, 1, 2], priority=priority, max_tokens=1))
    driver.run()
    assert [sequence.request.request_id for sequence in driver.ended] == ["2", "0", "1"]


def test_a_known_beginning_is_not_computed_again() -> None:
    driver = Driver(token_budget=64)
    prompt = list(range(14))
    driver.add(make_sequence(0, prompt, max_tokens=1))
    driver.run()
    (second,) = driver.add(make_sequence(1, [*prompt[:13], 77], max_tokens=1))
    assert driver.step() == [(1, 0, 12, 2)]  # three blocks of four
    assert second.cached_tokens == 12
    driver.add(make_sequence(2, prompt[:12], max_tokens=1))
    assert driver.step() == [(2, 0, 8, 4)]  # its last token is computed in any case, and so its block
    driver.add(make_sequence(3, prompt, max_tokens=1, scored=True))
    assert driver.step() == [(3, 0, 0, 14)]  # logprobs of the prompt are wanted


def test_what_is_being_computed_is_waited_for_and_not_computed_twice() -> None:
    """Five prompts with one beginning of two blocks come at once; the third block of 3 and 4 is the same too."""
    driver = Driver(token_budget=64)
    beginning = list(range(8))
    tails = [[50, 51], [60], [70, 71], [80, 81, 82, 83, 1], [80, 81, 82, 83, 2]]
    for name, tail in enumerate(tails):
        driver.add(make_sequence(name, [*beginning, *tail], max_tokens=1))
    assert driver.step() == [(0, 0, 0, 10)]
    assert driver.step() == [(1, 0, 8, 1), (2, 0, 8, 2), (3, 0, 8, 5)]
    assert driver.step() == [(4, 0, 12, 1)]
    without = Driver(token_budget=64, caches=False)
    for name, tail in enumerate(tails):
        without.add(make_sequence(name, [*beginning, *tail], max_tokens=1))
    assert len(without.step()) == 5


def test_samples_of_one_prompt_share_it_and_copy_its_last_block_only() -> None:
    driver = Driver(token_budget=64, caches=False)  # no help from the prefix cache
    samples = driver.add(make_sequence(0, list(range(10)), n=3, max_tokens=4))
    assert driver.step() == [(0, 0, 0, 10)]
    assert driver.step() == [(0, 0, 10, 1), (0, 1, 9, 1), (0, 2, 9, 1)]
    assert all(sample.blocks[:2] == samples[0].blocks[:2] for sample in samples)
    assert len({sample.blocks[2] for sample in samples}) == 3
    driver.run()
    assert driver.computed == 10 + 3 * 4 - 1
    assert driver.pool.num_free == 64


def test_samples_whose_leader_has_ended_begin_by_themselves() -> None:
    driver = Driver(max_running=1, token_budget=64)
    driver.add(make_sequence(0, list(range(10)), n=3, max_tokens=2))
    driver.run()
    assert len(driver.ended) == 3
    assert driver.computed == 10 + 1 + 2 * (2 + 1)  # two full blocks come from the prefix cache


def test_when_blocks_run_out_the_youngest_gives_way_and_loses_nothing() -> None:
    alone: dict[int, list[int]] = {}
    for name in range(4):
        driver = Driver()
        (sequence,) = driver.add(make_sequence(name, [name * 7 + i for i in range(6)], max_tokens=20))
        driver.run()
        alone[name] = sequence.generated_ids
    for caches in (True, False):
        driver = Driver(blocks=10, token_budget=64, caches=caches)
        together = [driver.add(make_sequence(name, [name * 7 + i for i in range(6)], max_tokens=20))[0] for name in range(4)]
        driver.run()
        assert driver.scheduler.preemptions > 0
        assert {name: sequence.generated_ids for name, sequence in enumerate(together)} == alone
        assert driver.pool.num_free == 10
        assert driver.ended[0].request.request_id == "0"


def test_a_sequence_that_is_taken_out_leaves_no_block_behind() -> None:
    driver = Driver(max_running=2)
    added = [driver.add(make_sequence(name, [name, 2, 3, 4, 5]))[0] for name in range(4)]
    driver.step()
    for sequence in (added[0], added[3]):
        driver.scheduler.remove(sequence)
    driver.run()
    assert {sequence.request.request_id for sequence in driver.ended} == {"1", "2"}
    assert driver.pool.num_free == 64


def test_random_traffic_ends_and_every_sequence_reads_its_own_tokens() -> None:
    """The driver checks each step what every block holds; beginnings are shared often, blocks are scarce, some requests vanish."""
    for seed in range(12):
        rng = random.Random(seed)
        driver = Driver(blocks=rng.randint(12, 40), max_running=rng.randint(1, 6), token_budget=rng.randint(6, 30), caches=seed % 3 > 0)
        beginnings = [[rng.randrange(50) for _ in range(12)] for _ in range(3)]
        expected = 0
        for name in range(25):
            prompt = rng.choice(beginnings)[: rng.randint(1, 12)] + [rng.randrange(50) for _ in range(rng.randint(0, 9))]
            n = rng.choice([1, 1, 2, 4])
            sequences = driver.add(make_sequence(name, prompt, n=n, max_tokens=rng.randint(1, 20), priority=rng.randint(0, 1)))
            for _ in range(rng.randint(0, 3)):
                driver.step()
            if rng.random() < 0.1:
                for sequence in sequences:
                    if sequence not in driver.ended:
                        driver.scheduler.remove(sequence)
                        driver.ended.append(sequence)
            expected += n
        driver.run()
        assert len(driver.ended) == expected
        assert driver.pool.num_free == driver.pool.num_blocks


def test_reading_the_counter_of_preemptions_between_steps_changes_nothing() -> None:
    """The engine's statistics take it and set it back after each step."""
    driver = Driver(blocks=8, token_budget=64, caches=False)
    for name in range(4):
        driver.add(make_sequence(name, [name * 7 + i for i in range(7)], max_tokens=20))
    preempted = 0
    while driver.step() or driver.scheduler.num_waiting:
        preempted += driver.scheduler.preemptions
        driver.scheduler.preemptions = 0
    assert preempted > 2
    assert len(driver.ended) == 4


def test_control_the_driver_notices_a_block_that_is_not_copied(monkeypatch) -> None:
    monkeypatch.setattr(Driver, "_copy", lambda self, step: None)
    driver = Driver(token_budget=64)
    driver.add(make_sequence(0, list(range(10)), n=3, max_tokens=4))
    try:
        driver.run()
    except (AssertionError, KeyError):
        return
    raise AssertionError("a missing copy went unnoticed")
