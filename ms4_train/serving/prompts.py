"""From a request's body to the engine's requests: tokens, images, sampling. Runs in a worker thread, for it may take seconds.

Exercise it: ``pytest tests/ms4_train/serving/test_prompts.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ms4_train.chat import ChatTokenizer
from ms4_train.chat.images import image_tokens, to_image_batch
from ms4_train.chat.messages import read_prompt
from ms4_train.chat.types import ChatRow, Message
from ms4_train.inference.request import GenerationRequest
from ms4_train.inference.sampling_params import SamplingParams
from ms4_train.inference.tool_choice import with_tool_choice
from ms4_train.serving.admission import Ticket
from ms4_train.serving.chat_fields import ChatRequest, NamedTool
from ms4_train.serving.completion_fields import CompletionRequest
from ms4_train.serving.failures import bad_request
from ms4_train.serving.parameters import max_tokens, prompt_too_long, sampling_params
from ms4_train.serving.settings import ServerSettings
from ms4_train.untrusted import EncodedImage, ImageReader

# A longer text per token is no text of this model's; it is refused before it is tokenised.
_MAX_CHARACTERS_PER_TOKEN = 32
_SPARE_CHARACTERS = 1 << 16
_BYTES_PER_TOKEN = 40  # an integer and its place in a tuple
_BYTES_PER_LOGPROB = 120  # a tuple of two numbers
_DECODING_BYTES_PER_PIXEL = 16


@dataclass(frozen=True)
class PromptMaker:
    """Makes requests with one model.

    Attributes:
        tokenizer: of the model.
        settings: bounds.
        max_context: of the engine, in tokens.
        has_vision: whether the model sees images.
    """

    tokenizer: ChatTokenizer
    settings: ServerSettings
    max_context: int
    has_vision: bool

    def chat(self, fields: ChatRequest, body: Mapping[str, Any], request_id: str, adapter: str | None, ticket: Ticket) -> GenerationRequest:
        """The request of a conversation.

        Args:
            fields: the checked body.
            body: the same as it came, which our own checks of messages and tools read.
            request_id: for the engine.
            adapter: that answers; None: the model itself.
            ticket: holds the memory.

        Raises:
            MS4Error: what is wrong with it (``ApiError`` 400, 413 or 429 among them).
        """
        messages = [_renamed(message) for message in body["messages"]]
        _check_image_count(messages, self.settings.max_images)
        reader = None
        if self.has_vision:
            reader = ImageReader(limits=self.settings.image_limits, allowed_hosts=self.settings.image_hosts)
        row = read_prompt(messages, tools=body.get("tools"), reasoning_effort=fields.reasoning_effort, images=reader)
        self._check_characters(_characters(row), is_chat=True)
        prompt = self.tokenizer.encode_prompt_with_images(row)
        sampling = sampling_params(fields, max_tokens(fields, len(prompt.token_ids), self.max_context, self.settings))
        choice: Any = fields.tool_choice or "auto"
        sampling = with_tool_choice(
            sampling,
            json.loads(row.tools_json) if row.tools_json else [],
            choice.model_dump() if isinstance(choice, NamedTool) else choice,
            ids=self.tokenizer.ids,
            may_think=fields.reasoning_effort == "high",
            parallel=fields.parallel_tool_calls is not False,
        )
        count = fields.n or 1
        ticket.hold(_request_bytes(len(prompt.token_ids), sampling, count), "messages")
        images = self._decode(prompt.images, ticket) if prompt.images else None
        return GenerationRequest(request_id, tuple(prompt.token_ids), sampling, images, count, adapter)

    def completions(self, fields: CompletionRequest, request_id: str, adapter: str | None, ticket: Ticket) -> list[GenerationRequest]:
        """The requests of a completion, one for each prompt. Arguments and errors as for ``chat``."""
        count = fields.n or 1
        if count * prompt_count(fields) > self.settings.max_answers:
            made = f"{count} for each of {prompt_count(fields)} prompts"
            raise bad_request(f"At most {self.settings.max_answers} answers are given; these are {made}.", "prompt", "too_many_answers")
        requests = []
        for index, prompt in enumerate(_prompts(fields)):
            if isinstance(prompt, str):
                self._check_characters(len(prompt), is_chat=False)
                ids = [self.tokenizer.bos_id, *self.tokenizer.encode_text(prompt)]
            else:
                ids = prompt
            sampling = sampling_params(fields, max_tokens(fields, len(ids), self.max_context, self.settings))
            if max(ids) >= self.tokenizer.vocab_size:
                raise bad_request(f"The prompt holds token {max(ids)}; the vocabulary ends at {self.tokenizer.vocab_size - 1}.", "prompt")
            ticket.hold(_request_bytes(len(ids), sampling, count), "prompt")
            requests.append(GenerationRequest(f"{request_id}-{index}", tuple(ids), sampling, None, count, adapter))
        return requests

    def _check_characters(self, characters: int, *, is_chat: bool) -> None:
        most = self.settings.max_prompt_tokens or self.max_context
        if characters > most * _MAX_CHARACTERS_PER_TOKEN + _SPARE_CHARACTERS:
            raise prompt_too_long(f"{characters:,} characters", most, is_chat=is_chat)

    def _decode(self, images: Sequence[EncodedImage], ticket: Ticket) -> Any:
        """The pixels of the images, held by the ticket; what decoding takes besides only for as long as it lasts."""
        spec = self.tokenizer.image_spec
        assert spec is not None  # or the tokenizer had refused them
        pixels = sum(image_tokens(image.width, image.height, spec).cells * spec.cell**2 for image in images)
        ticket.hold(3 * 4 * pixels, "messages")
        passing = max(image.width * image.height for image in images) * _DECODING_BYTES_PER_PIXEL
        ticket.hold(passing, "messages")
        try:
            return to_image_batch(images, spec, self.settings.image_limits)
        finally:
            ticket.let_go(passing)


def prompt_count(fields: CompletionRequest) -> int:
    """How many prompts a completion request holds."""
    return len(_prompts(fields))


def _prompts(fields: CompletionRequest) -> list[Any]:
    prompt = fields.prompt
    return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else list(prompt)


def _renamed(message: dict[str, Any]) -> dict[str, Any]:
    return message | {"role": "system"} if message["role"] == "developer" else message


def _check_image_count(messages: Iterable[Mapping[str, Any]], most: int) -> None:
    count = 0
    for number, message in enumerate(messages):
        parts = message.get("content")
        count += sum(part["type"] == "image_url" for part in parts) if isinstance(parts, list) else 0
        if count > most:
            raise bad_request(f"The messages hold more than {most} images.", f"messages[{number}].content", "too_many_images")


def _characters(row: ChatRow) -> int:
    texts = [text for message in row.messages for text in (message.text, message.thinking or "", *_arguments(message))]
    return sum(map(len, texts)) + len(row.tools_json)


def _arguments(message: Message) -> list[str]:
    return [call.arguments for call in message.tool_calls]


def _request_bytes(prompt_tokens: int, sampling: SamplingParams, count: int) -> int:
    """About what a request takes while it is answered: tokens, and logprobs of those that have them."""
    size = (prompt_tokens + count * sampling.max_tokens) * _BYTES_PER_TOKEN
    if sampling.logprobs is not None:
        size += count * sampling.max_tokens * (1 + sampling.logprobs) * _BYTES_PER_LOGPROB
    if sampling.prompt_logprobs is not None:
        size += prompt_tokens * (1 + sampling.prompt_logprobs) * _BYTES_PER_LOGPROB
    return size
