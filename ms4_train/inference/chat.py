"""From messages to a request, and from a completion to an answer's parts.

Exercise it: ``pytest tests/ms4_train/inference/test_chat.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ms4_train.chat import Answer, ChatTokenizer, parse_answer
from ms4_train.chat.images import to_image_batch
from ms4_train.chat.messages import read_prompt
from ms4_train.chat.tool_grammar import ToolChoice
from ms4_train.chat.types import ReasoningEffort
from ms4_train.inference.request import Completion, GenerationRequest
from ms4_train.inference.sampling_params import SamplingParams
from ms4_train.inference.tool_choice import with_tool_choice
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
    tool_choice: ToolChoice = "auto",
    parallel_tool_calls: bool = True,
    images: ImageReader = INLINE_IMAGES,
    adapter: str | None = None,
    n: int = 1,
    priority: int = 0,
) -> GenerationRequest:
    """A request for the assistant's answer to ``messages``.

    Args:
        tokenizer: of the model.
        messages: in the row format of the data rooms, ending with a user or tool message.
        request_id: the caller's name for it.
        reasoning_effort: "high" lets the model think first, "none" asks for the answer directly.
        sampling: how its tokens are chosen; its constraint is the form of an answer without calls.
        tools: that the model may call, in OpenAI's form.
        tool_choice: auto, none, required, or one tool (see ``ms4_train.inference.tool_choice``).
        parallel_tool_calls: whether a constrained answer may hold several calls.
        images: where images of the messages may come from; by default they must stand in the messages themselves (data URLs, bytes).
        adapter, n, priority: of the request.

    Raises:
        MS4Error: messages in the wrong order or form, an image that is refused or damaged, or a tool choice that cannot be met.
    """
    row = read_prompt(messages, tools=tools, reasoning_effort=reasoning_effort, images=images)
    prompt = tokenizer.encode_prompt_with_images(row)
    batch = None
    if prompt.images:
        assert tokenizer.image_spec is not None  # or the tokenizer had refused them
        batch = to_image_batch(prompt.images, tokenizer.image_spec, images.limits)
    definitions = json.loads(row.tools_json) if row.tools_json else []
    may_think = reasoning_effort == "high"
    sampling = with_tool_choice(sampling, definitions, tool_choice, ids=tokenizer.ids, may_think=may_think, parallel=parallel_tool_calls)
    return GenerationRequest(request_id, tuple(prompt.token_ids), sampling, batch, n, adapter, priority)


def completion_answer(completion: Completion, tokenizer: ChatTokenizer) -> Answer:
    """The thinking, content and tool calls of a completion."""
    return parse_answer(completion.token_ids, tokenizer)
