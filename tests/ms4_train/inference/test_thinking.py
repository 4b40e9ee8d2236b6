"""The thought's state machine against the parser of finished answers, and its budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tokenizers import tiny_tokenizer

from ms4_train.chat.parse import parse_answer
from ms4_train.inference.thinking import Thought

IDS = tiny_tokenizer().ids
THINK, END, CALL, WORD = IDS.think, IDS.end_think, IDS.tool_calls, 100
NAMES = {"none": "none", "closed": "closed", "open": "open", "unterminated": "open"}


def run(tokens: list[int], budget: int | None = None) -> Thought:
    thought = Thought(IDS, budget)
    for token_id in tokens:
        thought.push(token_id)
    return thought


@given(st.lists(st.sampled_from([THINK, END, CALL, IDS.args, WORD, WORD + 1]), max_size=12), st.booleans())
def test_states_and_counts_are_the_parsers(tokens: list[int], ends: bool) -> None:
    tokens = tokens + [IDS.eos] * ends
    answer = parse_answer(tokens, tiny_tokenizer())
    thought = run(tokens)
    assert thought.tokens == answer.thinking_tokens
    assert thought.state == NAMES[answer.thinking_state]


@pytest.mark.parametrize("budget", [0, 1, 5])
def test_a_spent_budget_forces_the_closing_tag(budget: int) -> None:
    thought = run([THINK], budget)
    for _ in range(budget):
        assert thought.forced_token() is None
        thought.push(WORD)
    assert thought.forced_token() == END
    thought.push(END)
    assert (thought.state, thought.tokens, thought.forced_token()) == ("forced", budget, None)


def test_a_thought_within_its_budget_is_not_forced() -> None:
    thought = run([THINK, WORD, END, WORD, WORD, WORD], 3)
    assert (thought.state, thought.tokens, thought.forced_token()) == ("closed", 1, None)
    assert run([WORD] * 10, 3).forced_token() is None


def test_thoughts_of_one_answer_share_the_budget_and_tags_inside_spend_it() -> None:
    assert run([THINK, WORD, WORD, END, WORD, THINK], 2).forced_token() == END
    repeated = run([THINK, THINK, THINK], 2)
    assert (repeated.forced_token(), repeated.tokens) == (END, 0)


def test_a_call_closes_a_thought_and_an_unfinished_one_stays_open() -> None:
    assert run([THINK, WORD, CALL]).state == "closed"
    assert run([THINK, WORD]).state == "open"
    assert run([THINK, WORD], 5).state == "open"


def test_without_control_tokens_nothing_is_a_thought() -> None:
    thought = Thought(None, 0)
    thought.push(THINK)
    assert (thought.state, thought.forced_token()) == ("none", None)
