"""From messages to a completion's parts, through the engine."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from ms4_train.chat.types import ReasoningEffort
from ms4_train.errors import EngineError, MS4Error
from ms4_train.inference import Engine, GenerationRequest, SamplingParams, chat_request, completion_answer
from ms4_train.inference.tool_choice import with_tool_choice
from ms4_train.model import Mistral4ForCausalLM, SequenceLayout

QUESTION = [{"role": "user", "content": "7*3+8-5*9 mod 10 ="}]


@pytest.mark.parametrize("mode", ["none", "high"])
def test_a_request_is_the_tokenizers_own_prompt(tokenizer, mode: ReasoningEffort) -> None:
    sampling = SamplingParams(max_tokens=5)
    request = chat_request(tokenizer, QUESTION, request_id="q", reasoning_effort=mode, sampling=sampling)
    assert request.prompt_ids == tuple(tokenizer.encode_chat(QUESTION, reasoning_effort=mode))
    assert (request.request_id, request.sampling) == ("q", sampling)


def test_the_modes_and_tools_make_different_prompts(tokenizer) -> None:
    tools = [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {}}}}]
    prompts = {
        chat_request(tokenizer, QUESTION, request_id="q", reasoning_effort=mode, sampling=SamplingParams(), tools=given).prompt_ids
        for mode in get_args(ReasoningEffort)
        for given in (None, tools)
    }
    assert len(prompts) == 4


def test_a_tool_choice_and_the_rest_reach_the_request(tokenizer) -> None:
    tools = [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {}}}}]
    named = {"type": "function", "function": {"name": "add"}}
    plain = SamplingParams(max_tokens=5)

    def request(**options: Any) -> GenerationRequest:
        return chat_request(tokenizer, QUESTION, request_id="q", reasoning_effort="high", sampling=plain, tools=tools, **options)

    free = request(adapter="maths", n=3, priority=-1)
    assert (free.adapter, free.n, free.priority, free.sampling) == ("maths", 3, -1, plain)
    for choice in ("required", "none", named):
        found = request(tool_choice=choice, parallel_tool_calls=False)
        assert found.prompt_ids == free.prompt_ids
        expected = with_tool_choice(plain, tools, choice, ids=tokenizer.ids, may_think=True, parallel=False)
        assert found.sampling == expected
        assert found.sampling != plain
    with pytest.raises(EngineError, match="not among the tools"):
        request(tool_choice={"type": "function", "function": {"name": "mul"}})


def test_malformed_messages_are_typed_errors(tokenizer) -> None:
    with pytest.raises(MS4Error):
        chat_request(tokenizer, [{"role": "assistant", "content": "x"}], request_id="q", reasoning_effort="none", sampling=SamplingParams())


def test_answers_of_both_modes_from_one_batch_fall_into_their_parts(model, tokenizer) -> None:
    """The head is fitted so that the model answers as a trained one does: thinking first in mode high, directly in mode none."""
    think = [tokenizer.think_id, *tokenizer.encode_text("1+2"), tokenizer.end_think_id]
    answer = [*tokenizer.encode_text("3"), tokenizer.eos_id]
    plans: dict[ReasoningEffort, list[int]] = {"high": think + answer, "none": answer}
    requests = [
        chat_request(tokenizer, QUESTION, request_id=mode, reasoning_effort=mode, sampling=SamplingParams(max_tokens=20)) for mode in plans
    ]
    fit_head(model, [(request.prompt_ids, answer_ids) for request, answer_ids in zip(requests, plans.values(), strict=True)])
    completions = {completion.request_id: completion for completion in Engine(model, tokenizer).generate(requests)}
    high = completion_answer(completions["high"], tokenizer)
    assert (high.thinking, high.content, high.thinking_state) == ("1+2", "3", "closed")
    assert completions["high"].finish_reason == "stop"
    none = completion_answer(completions["none"], tokenizer)
    assert (none.thinking, none.content, none.thinking_state) == ("", "3", "none")
    assert completions["none"].generated_tokens == len(answer)


def fit_head(model: Mistral4ForCausalLM, plans: list[tuple[tuple[int, ...], list[int]]]) -> None:
    """Sets the head so that the model continues each prompt with its answer: a least-squares fit on its own hidden states."""
    with torch.no_grad():
        hidden = []
        for prompt_ids, answer_ids in plans:
            ids = torch.tensor([*prompt_ids, *answer_ids[:-1]])
            hidden.append(model(ids, SequenceLayout.from_lengths([len(ids)]))[len(prompt_ids) - 1 :])
        hidden_td = torch.cat(hidden)
        assert hidden_td.shape[0] <= hidden_td.shape[1], "more tokens than dimensions cannot be fitted"
        answer_t = torch.tensor([token_id for _, answer_ids in plans for token_id in answer_ids])
        wanted_tv = torch.nn.functional.one_hot(answer_t, model.config.vocab_size).float()
        model.lm_head.weight.copy_((torch.linalg.pinv(hidden_td) @ wanted_tv).t())
