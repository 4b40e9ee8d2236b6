"""From messages to a request, and from a completion to an answer's parts.

Exercise it: ``pytest tests/ms4_train/inference/test_chat.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ms4_train.chat import Answer, ChatTokenizer, parse_answer
from ms4_train.chat.images import to_image_batch
from ms4_train.chat.messages import read_prompt
from ms4_train.chat.types import ReasoningEffort
from ms4_train.inference.request import Completion, GenerationRequest, SamplingParams
from ms4_train.untrusted import ImageReader

INLINE_IMAGES = ImageReader()
"""Images must stand in the messages themselves."""


def chat_request(
    tokenizer: ChatTokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    request_id: str,
    reasoning_effort: ReasoningEffort,
    sampling: SamplingParams,
    tools: Sequence[Mapping[str, Any]] | None = None,
    images: ImageReader = INLINE_IMAGES,
) -> GenerationRequest:
    """A request for the assistant's answer to ``messages``.

    Args:
        tokenizer: of the model.
        messages: in the row format of the data rooms, ending with a user or tool message.
        request_id: the caller's name for it.
        reasoning_effort: "high" lets the model think first, "none" asks for the answer directly.
        sampling: how its tokens are chosen.
        tools: that the model may call.
        images: where images of the messages may come from; by default they must stand in the messages themselves (data URLs, bytes).

    Raises:
        MS4Error: messages in the wrong order or form, or an image that is refused or damaged.
    """
    row = read_prompt(messages, tools=tools, reasoning_effort=reasoning_effort, images=images)
    prompt = tokenizer.encode_prompt_with_images(row)
    batch = None
    if prompt.images:
        assert tokenizer.image_spec is not None  # or the tokenizer had refused them
        batch = to_image_batch(prompt.images, tokenizer.image_spec, images.limits)
    return GenerationRequest(request_id, tuple(prompt.token_ids), sampling, batch)


def completion_answer(completion: Completion, tokenizer: ChatTokenizer) -> Answer:
    """The thinking, content and tool calls of a completion."""
    return parse_answer(completion.token_ids, tokenizer)
