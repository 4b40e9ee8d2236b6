"""Bodies to engine requests: mistral-common's tokens, bounded texts and images, memory that is held while it is needed."""

from __future__ import annotations

from typing import Any

import pytest
from support.images import blank_png, data_url
from support.tokenizers import tiny_tokenizer

from ms4_train.errors import MS4Error
from ms4_train.serving.admission import Admission, Ticket
from ms4_train.serving.chat_fields import ChatRequest
from ms4_train.serving.completion_fields import CompletionRequest
from ms4_train.serving.failures import ApiError
from ms4_train.serving.prompts import PromptMaker, prompt_count
from ms4_train.serving.settings import ServerSettings

TOKENIZER = tiny_tokenizer()


def maker(*, has_vision: bool = False, **settings: Any) -> PromptMaker:
    return PromptMaker(TOKENIZER, ServerSettings("m", **settings), 512, has_vision)


def ticket(held: int = 1 << 30) -> Ticket:
    return Admission(8, held).enter()


def chat(maker: PromptMaker, content: Any = "hi", held: Ticket | None = None, **fields: Any):
    body = {"model": "m", "messages": [{"role": "user", "content": content}], **fields}
    return maker.chat(ChatRequest.model_validate(body), body, "id", None, held or ticket())


def picture(width: int = 40, height: int = 30) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(blank_png(width, height))}}


@pytest.mark.parametrize("effort", ["none", "high"])
def test_the_prompt_is_the_tokenizers(effort: str) -> None:
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    body = {"model": "m", "messages": messages, "reasoning_effort": effort, "n": 2}
    request = maker().chat(ChatRequest.model_validate(body), body, "id", "lora", ticket())
    expected = TOKENIZER.encode_chat([messages[0] | {"role": "system"}, messages[1]], reasoning_effort=effort)
    assert list(request.prompt_ids) == expected
    assert (request.request_id, request.n, request.adapter, request.images) == ("id", 2, "lora", None)
    assert request.sampling.max_tokens == 512 - len(expected)


def test_a_tool_choice_becomes_a_constraint() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    chosen = {"type": "function", "function": {"name": "f"}}
    assert chat(maker(), tools=tools).sampling.constraint is None
    for choice in ("required", chosen):
        form = chat(maker(), tools=tools, tool_choice=choice).sampling.constraint
        assert form is not None
        assert form.kind == "lark"
    for choice in ("required", {"type": "function", "function": {"name": "g"}}):
        with pytest.raises(MS4Error, match="tool"):
            chat(maker(), tools=tools if choice != "required" else None, tool_choice=choice)


def test_images_are_decoded_and_held() -> None:
    held = ticket()
    request = chat(maker(has_vision=True), [{"type": "text", "text": "x"}, picture()], held)
    assert request.images is not None
    # 2 x 2 cells of 28 x 28 pixels in fp32, and the tokens' own memory
    assert held._bytes == 3 * 4 * 4 * 28 * 28 + 40 * 512


@pytest.mark.parametrize(
    ("settings", "parts", "param"),
    [
        ({"has_vision": False}, [picture()], "messages[0].content[0]"),
        ({"max_images": 1}, [picture(), picture()], "messages[0].content"),
        ({}, [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}], "messages[0].content[0]"),
        ({}, [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}], "messages[0].content[0]"),
        ({}, [{"type": "image_url", "image_url": {"url": "file:///etc/hostname"}}], "messages[0].content[0]"),
        ({}, [{"type": "image_url", "image_url": {"url": "tekken.json"}}], "messages[0].content[0]"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_images_are_bounded(settings: dict[str, Any], parts: list[Any], param: str) -> None:
    with pytest.raises(MS4Error) as caught:
        chat(maker(**{"has_vision": True, **settings}), parts)
    assert caught.value.key == param


def test_pixels_beyond_what_is_held_are_refused_before_they_are_decoded() -> None:
    with pytest.raises(ApiError) as caught:
        chat(maker(has_vision=True), [picture()], ticket(25_000))
    assert caught.value.status in (413, 429)


def test_a_text_that_cannot_fit_is_not_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("tokenised")

    monkeypatch.setattr(TOKENIZER, "encode_prompt_with_images", never)
    with pytest.raises(ApiError) as caught:
        chat(maker(), "x" * 100_000)
    assert (caught.value.status, caught.value.error_code) == (400, "context_length_exceeded")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [[1, *TOKENIZER.encode_text("ab")]]),
        ("", [[1]]),
        (["a", "b"], [[1, *TOKENIZER.encode_text("a")], [1, *TOKENIZER.encode_text("b")]]),
        ([50, 60], [[50, 60]]),
        ([[50], [60, 70]], [[50], [60, 70]]),
    ],
    ids=str,
)
def test_completion_prompts(prompt: Any, expected: list[list[int]]) -> None:
    fields = CompletionRequest.model_validate({"model": "m", "prompt": prompt})
    requests = maker().completions(fields, "id", None, ticket())
    assert [list(request.prompt_ids) for request in requests] == expected
    assert prompt_count(fields) == len({request.request_id for request in requests}) == len(expected)


def test_ids_beyond_the_vocabulary() -> None:
    fields = CompletionRequest.model_validate({"model": "m", "prompt": [TOKENIZER.vocab_size]})
    with pytest.raises(ApiError, match="vocabulary"):
        maker().completions(fields, "id", None, ticket())
