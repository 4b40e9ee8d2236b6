"""The sampler's order, its independence of company, and what it does to rows that cannot be served."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from support.tokenizers import tiny_tokenizer
from transformers import MinNewTokensLengthLogitsProcessor, RepetitionPenaltyLogitsProcessor

from ms4_train.inference.constraints import Constraint, ConstraintCompiler
from ms4_train.inference.sampling import NOT_FINITE, Choice, Sampler, most_likely
from ms4_train.inference.sampling_params import ConstraintSpec, SamplingParams
from ms4_train.inference.thinking import Thought

IDS = tiny_tokenizer().ids
COMPILER = ConstraintCompiler(tiny_tokenizer())
V = tiny_tokenizer().vocab_size


@dataclass(eq=False)
class Row:
    """An answer on its way, as the engine has it."""

    params: SamplingParams
    prompt_ids: tuple[int, ...] = (1, 50, 60)
    generated_ids: list[int] = field(default_factory=list)
    seed: int = 0
    constraint: Constraint | None = None
    thought: Thought = field(init=False)

    def __post_init__(self) -> None:
        self.thought = Thought(IDS, self.params.thinking_budget)
        if self.params.constraint is not None:
            self.constraint = COMPILER.compile(self.params.constraint)

    def take(self, token_id: int) -> None:
        self.generated_ids.append(token_id)
        self.thought.push(token_id)
        if self.constraint is not None and token_id != IDS.eos:
            self.constraint.accept(token_id)


def sampler(vocab_size: int = V) -> Sampler:
    return Sampler(vocab_size=vocab_size, eos_id=IDS.eos, special=IDS, device="cpu")


def tokens(choices: Sequence[Choice]) -> list[int]:
    return [choice.token_id for choice in choices]


def choose(logits: torch.Tensor, *rows: Row, vocab_size: int = V) -> list[int]:
    return tokens(sampler(vocab_size).choose(logits, rows))


KINDS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.2, "top_k": 7, "min_p": 0.01},
    {"temperature": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.3},
    {"logit_bias": ((77, 3.0),), "min_tokens": 4, "logprobs": 2},
    {"temperature": 1.0, "logprobs": 0, "thinking_budget": 2},
    {"temperature": 1.0, "constraint": ConstraintSpec("regex", "[a-z]+")},
]


def run(rows: list[Row], logits_srv: torch.Tensor, order: Sequence[int]) -> dict[int, list[Choice]]:
    """Six steps of the rows of ``order``; all begin together, row number 3 is away in the middle."""
    chosen: dict[int, list[Choice]] = {row: [] for row in order}
    one = sampler()
    for step in range(6):
        batch = [row for row in order if row != 3 or step not in (2, 3)]
        for row, choice in zip(batch, one.choose(logits_srv[step][batch], [rows[row] for row in batch]), strict=True):
            chosen[row].append(choice)
            rows[row].take(choice.token_id)
    return chosen


def test_a_row_does_not_depend_on_its_place_its_neighbours_or_their_kind() -> None:
    torch.manual_seed(3)
    count = 2 * len(KINDS)
    logits = torch.randn(6, count, V)

    def fresh() -> list[Row]:
        return [Row(SamplingParams(**KINDS[row % len(KINDS)]), seed=row) for row in range(count)]

    together = run(fresh(), logits, range(count))
    assert len({choice.token_id for choices in together.values() for choice in choices}) > 20
    for row in range(count):
        assert run(fresh(), logits, [row])[row] == together[row]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(4)).tolist()
    assert run(fresh(), logits, order) == together


def test_seed_and_position_name_the_number() -> None:
    logits = torch.zeros(200, V)
    params = SamplingParams(temperature=1.0)
    first = choose(logits, *(Row(params, seed=seed) for seed in range(200)))
    again = choose(logits, *(Row(params, seed=seed) for seed in range(200)))
    later = choose(logits, *(Row(params, seed=seed, generated_ids=[5]) for seed in range(200)))
    assert first == again
    assert sum(left == right for left, right in zip(first, later, strict=True)) < 10
    assert len(set(first)) > 100


def test_greedy_takes_the_highest_logit_and_the_lower_id_on_a_tie() -> None:
    logits = torch.tensor([[0.0, 5.0, 5.0, 1.0], [7.0, 1.0, 2.0, 7.0], [-1.0, -2.0, -3.0, -0.5]])
    rows = [Row(SamplingParams()) for _ in range(3)]
    assert choose(logits, *rows, vocab_size=4) == [1, 0, 3]
    # The path for other devices and types agrees.
    assert most_likely(logits.double()) == [1, 0, 3]
    edited = [Row(SamplingParams(logit_bias=((3, 0.0),))) for _ in range(3)]
    assert choose(logits, *edited, vocab_size=4) == [1, 0, 3]


@pytest.mark.parametrize("params", [{}, {"temperature": 100.0}, {"temperature": 9.0, "top_k": 3}, {"repetition_penalty": 2.0}])
def test_tokens_beyond_the_vocabulary_are_never_chosen(params: dict) -> None:
    logits = torch.tensor([[0.0, 1.0, 50.0, 60.0]]).expand(20, -1)
    assert set(choose(logits, *(Row(SamplingParams(**params), seed=seed) for seed in range(20)), vocab_size=2)) <= {0, 1}
    assert set(choose(logits, *(Row(SamplingParams(**params), seed=seed) for seed in range(20)), vocab_size=4)) & {2, 3}


@pytest.mark.parametrize("kind", range(len(KINDS)))
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_reported_for_their_row_alone(kind: int, value: float) -> None:
    logits = torch.zeros(3, V)
    logits[1, 10] = value  # the regex forbids this token: its row must be reported all the same
    rows = [Row(SamplingParams(**KINDS[kind])) for _ in range(3)]
    choices = sampler().choose(logits, rows)
    assert choices[1] == Choice(NOT_FINITE)
    assert min(choices[0].token_id, choices[2].token_id) >= 0


def test_the_logits_stay_as_they_are() -> None:
    torch.manual_seed(5)
    logits = torch.randn(len(KINDS), V)
    before = logits.clone()
    sampler().choose(logits, [Row(SamplingParams(**kind)) for kind in KINDS])
    assert torch.equal(logits, before)


def test_bias_comes_before_penalties() -> None:
    """Token 60 of the prompt: (1 + 3) / 2 = 2 beats 1.9; the other way it would be 1 / 2 + 3 = 3.5, and 3.4 would win no more."""
    params = SamplingParams(repetition_penalty=2.0, logit_bias=((60, 3.0),))
    for rival, wanted in ((1.9, 60), (3.4, 70)):
        logits = torch.zeros(1, V)
        logits[0, 60], logits[0, 70] = 1.0, rival
        assert choose(logits, Row(params)) == [wanted]


def test_a_penalised_answer_is_transformers_greedy_answer() -> None:
    """Repetition penalty and min_tokens together, over 40 steps in which the counts grow."""
    torch.manual_seed(6)
    prompt = (1, 50, 60, 70)
    row = Row(SamplingParams(repetition_penalty=1.4, min_tokens=30, max_tokens=40), prompt_ids=prompt)
    penalty = RepetitionPenaltyLogitsProcessor(1.4)
    least = MinNewTokensLengthLogitsProcessor(len(prompt), 30, IDS.eos, device="cpu")
    one = sampler()
    for _ in range(40):
        logits = torch.randn(1, V)
        logits[0, IDS.eos] = 3.0
        ids = torch.tensor([[*prompt, *row.generated_ids]])
        wanted = int(least(ids, penalty(ids, logits.clone())).argmax())
        assert tokens(one.choose(logits, [row])) == [wanted]
        row.take(wanted)
    assert IDS.eos in row.generated_ids[30:]


def test_stop_tokens_wait_for_min_tokens_too() -> None:
    logits = torch.zeros(1, V)
    logits[0, 80], logits[0, IDS.eos], logits[0, 90] = 3.0, 2.0, 1.0
    params = SamplingParams(min_tokens=2, stop_token_ids=(80,))
    assert choose(logits, Row(params, generated_ids=[5])) == [90]
    assert choose(logits, Row(params, generated_ids=[5, 5])) == [80]
    kept = SamplingParams(min_tokens=2, ignore_eos=True, stop_token_ids=(80,))
    assert choose(logits, Row(kept)) == [IDS.eos], "an end token that ends nothing need not wait"


def test_a_form_that_is_complete_ends_before_min_tokens() -> None:
    row = Row(SamplingParams(min_tokens=9, constraint=ConstraintSpec("regex", "ab?", after_thinking=False)))
    letter = tiny_tokenizer().encode_text("a")[0]
    logits = torch.zeros(1, V)
    logits[0, IDS.eos] = 5.0
    row.take(letter)
    assert choose(logits, row) == tiny_tokenizer().encode_text("b"), "where the form leaves a choice, the answer goes on"
    row.take(tiny_tokenizer().encode_text("b")[0])
    assert choose(logits, row) == [IDS.eos]


def test_a_spent_budget_forces_the_tag_whatever_the_logits_say() -> None:
    row = Row(SamplingParams(thinking_budget=1, temperature=1.0, constraint=ConstraintSpec("json_object")))
    logits = torch.zeros(1, V)
    logits[0, 100] = 50.0
    row.take(IDS.think)
    assert choose(logits, row) == [100]
    row.take(100)
    assert choose(logits, row) == [IDS.end_think]
    row.take(IDS.end_think)
    assert choose(logits, row) == tiny_tokenizer().encode_text("{")
    assert row.thought.state == "forced"


def test_logprobs_are_of_the_raw_distribution() -> None:
    torch.manual_seed(7)
    logits = torch.randn(2, V + 5)
    raw = torch.log_softmax(logits[:, :V].double(), -1)
    params = SamplingParams(temperature=0.3, logit_bias=((7, 100.0),), logprobs=3)
    plain, biased = sampler().choose(logits, [Row(SamplingParams()), Row(params)])
    assert plain.logprobs is None
    assert biased.token_id == 7
    assert biased.logprobs is not None
    assert biased.logprobs.logprob == pytest.approx(raw[1, 7].item(), abs=1e-8)  # see test_logprobs
    assert biased.logprobs.rank == int((raw[1] >= raw[1, 7]).sum())
    assert [token for token, _ in biased.logprobs.top] == raw[1].topk(3).indices.tolist()
