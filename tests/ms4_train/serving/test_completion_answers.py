"""Tokens to text completions, whole and in chunks."""

from __future__ import annotations

from typing import Any

from openai.types import Completion as TheirCompletion
from support.tokenizers import tiny_tokenizer

from ms4_train.inference.request import Completion, FinishEvent, GenerationRequest, TokenEvent, TokenLogprobs
from ms4_train.serving.answer_fields import TextCompletion
from ms4_train.serving.completion_answers import CompletionAnswers
from ms4_train.serving.completion_fields import CompletionRequest

TOKENIZER = tiny_tokenizer()
IDS = TOKENIZER.ids
REQUESTS = [GenerationRequest(f"r-{number}", (1, *TOKENIZER.encode_text(word)), n=2) for number, word in enumerate(("ab", "cd"))]
HEAD = {"id": "cmpl-1", "created": 1, "model": "m"}


def answers(**fields: Any) -> CompletionAnswers:
    body = {"model": "m", "prompt": ["ab", "cd"], "n": 2, **fields}
    return CompletionAnswers(CompletionRequest.model_validate(body), REQUESTS, TOKENIZER, HEAD)


def completion(number: int, index: int, words: str = "é😀!", **values: Any) -> Completion:
    ids = TOKENIZER.encode_text(words)
    entries = [TokenLogprobs(token_id, -0.5, 1, ((token_id, -0.5),)) for token_id in [*ids, IDS.eos]]
    return Completion(f"r-{number}", ids, "stop", None, 3, len(ids) + 1, 0.1, index, logprobs=entries, **values)


def test_choices_are_counted_over_all_prompts() -> None:
    made = answers().response([completion(number, index, f"{number}{index}") for number in (0, 1) for index in (0, 1)])
    TextCompletion.model_validate(made)
    parsed = TheirCompletion.model_validate(made)
    assert [(choice.index, choice.text) for choice in parsed.choices] == [(0, "00"), (1, "01"), (2, "10"), (3, "11")]
    assert parsed.usage is not None
    assert parsed.usage.prompt_tokens == 6


def test_echo_puts_prompt_and_its_logprobs_before() -> None:
    prompt = [None, *[TokenLogprobs(token_id, -1.0, 1, ()) for token_id in REQUESTS[0].prompt_ids[1:]]]
    (choice,) = answers(echo=True, logprobs=1).response([completion(0, 0, prompt_logprobs=prompt)])["choices"]
    assert choice["text"] == "abé😀!"
    assert choice["logprobs"]["token_logprobs"][: len(prompt)] == [None, *[-1.0] * (len(prompt) - 1)]
    assert choice["logprobs"]["tokens"][0] == "<s>"
    assert "prompt_logprobs" not in choice


def test_control_tokens_on_demand() -> None:
    done = Completion("r-0", [IDS.think, *TOKENIZER.encode_text("x")], "length", None, 3, 2, 0.1)
    assert answers().response([done])["choices"][0]["text"] == "x"
    assert answers(skip_special_tokens=False).response([done])["choices"][0]["text"] == "[THINK]x"


def test_chunks_join_to_the_whole() -> None:
    making = answers(stream=True, logprobs=1)
    texts, logprobs, reasons = {}, {}, {}
    for number in (0, 1):
        for index in (0, 1):
            done = completion(number, index, f"{number}é😀{index}")
            assert done.logprobs is not None
            events = [
                TokenEvent(done.request_id, index, (token_id,), (entry,))
                for token_id, entry in zip(done.token_ids, done.logprobs, strict=False)
            ]
            for event in [*events, FinishEvent(done)]:
                for chunk in making.chunks([event]):
                    (choice,) = chunk["choices"]
                    place = choice["index"]
                    texts[place] = texts.get(place, "") + choice["text"]
                    logprobs[place] = logprobs.get(place, 0) + len(choice["logprobs"]["tokens"])
                    reasons[place] = choice["finish_reason"]
            assert logprobs[2 * number + index] == done.generated_tokens
    assert texts == {0: "0é😀0", 1: "0é😀1", 2: "1é😀0", 3: "1é😀1"}
    assert set(reasons.values()) == {"stop"}
    assert making.usage_chunk()["usage"]["prompt_tokens"] == 6
