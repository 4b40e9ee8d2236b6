"""Rows with images: ids, masks and pixels equal to those of mistral-common's own path on the same conversation."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.validator import ValidationMode
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from support.images import data_url, encoded, picture
from support.rows import conversations
from support.tokenizers import tiny_tokenizer, tokenizer_file

from ms4_train.chat import ChatRow, ChatTokenizer, EncodedRow, read_prompt, read_row, to_image_batch
from ms4_train.chat.tokenizer import _build_tekken
from ms4_train.errors import RowError
from ms4_train.model.images import ImageBatch
from ms4_train.untrusted import ImageReader, parse_json

READER = ImageReader()


@functools.cache
def url(width: int, height: int) -> str:
    return data_url(encoded(picture(width, height, seed=width)))


def image(width: int = 40, height: int = 30) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url(width, height)}}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


@functools.cache
def mistral_common() -> Any:
    """mistral-common's tokenizer, built by mistral-common from the same file."""
    return MistralTokenizer.from_file(str(tokenizer_file(400)), mode=ValidationMode.finetuning)


_IMAGES = st.sampled_from([image(1, 1), image(28, 28), image(29, 57), image(90, 20), image(1600, 5)])


@st.composite
def illustrated(draw: st.DrawFn) -> dict[str, Any]:
    """A conversation with images strewn over the messages of users and tools."""
    conversation = draw(conversations())
    for message in conversation["messages"]:
        if message["role"] in ("user", "tool"):
            content = message["content"]
            parts = [text(content)] if isinstance(content, str) else list(content)
            for _ in range(draw(st.integers(0, 3))):
                parts.insert(draw(st.integers(0, len(parts))), draw(_IMAGES))
            if any(part["type"] == "image_url" for part in parts):
                message["content"] = parts
    return conversation


def assert_mask_trains_no_image(encoded_row: EncodedRow) -> None:
    ids = tiny_tokenizer().ids
    specials = {ids.img, ids.img_break, ids.img_end}
    assert not any(trained for token, trained in zip(encoded_row.token_ids, encoded_row.loss_mask, strict=True) if token in specials)


@given(illustrated())
@settings(max_examples=50, deadline=None)
def test_ids_mask_and_spans(conversation: dict[str, Any]) -> None:
    tokenizer = tiny_tokenizer()
    row = read_row(conversation, images=READER)
    encoded_row = tokenizer.encode_row(row)
    assert encoded_row.token_ids == tokenizer.encode_with_mistral_common(row)
    assert encoded_row.images == row.images
    assert encoded_row.token_ids.count(tokenizer.ids.img_end) == len(row.images)
    assert_mask_trains_no_image(encoded_row)
    # The same text without images trains the same tokens.
    plain = replace(row, messages=tuple(replace(message, parts=()) for message in row.messages))
    trained = [token for token, is_trained in zip(encoded_row.token_ids, encoded_row.loss_mask, strict=True) if is_trained]
    without = tokenizer.encode_row(plain)
    assert trained == [token for token, is_trained in zip(without.token_ids, without.loss_mask, strict=True) if is_trained]
    assert [span.stop for span in encoded_row.spans[:-1]] == [span.start for span in encoded_row.spans[1:]]
    assert encoded_row.spans[-1].stop == len(encoded_row.token_ids)
    assert sum(span.kind == "image" for span in encoded_row.spans) == len(row.images)


@given(illustrated())
@settings(max_examples=40, deadline=None)
def test_prompts_equal_the_beginnings_of_rows(conversation: dict[str, Any]) -> None:
    # Prompts take an image's tokens from its size; the row's oracle decodes it. Both are mistral-common's path.
    tokenizer = tiny_tokenizer()
    row = read_row(conversation, images=READER)
    for index, message in enumerate(row.messages):
        if message.role == "assistant":
            begun = replace(row, messages=row.messages[:index])
            prompt = tokenizer.encode_prompt_with_images(begun)
            whole = tokenizer.encode_row(replace(row, messages=row.messages[: index + 1]))
            assert whole.token_ids[: len(prompt.token_ids)] == prompt.token_ids
            assert prompt.images == begun.images


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "image first": [image(), text("what?")],
    "image last": [text("what?"), image()],
    "image between": [text("this "), image(), text(" is?")],
    "several": [image(), text("or"), image(90, 20), text("or"), image(28, 28)],
    "text, then two": [text("these: "), image(), image(90, 20)],
    "two texts, then one": [text("this "), text("one: "), image()],
    "empty text, then one": [text(""), image()],
    "alone": [image()],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_ids_and_pixels_of_mistral_commons_own_request(name: str) -> None:
    """Neither our reading of rows nor our request is involved on mistral-common's side."""
    messages = [{"role": "user", "content": CONVERSATIONS[name]}, {"role": "assistant", "content": "that"}]
    request = ChatCompletionRequest.from_openai(messages, reasoning_effort="none")
    expected = mistral_common().encode_chat_completion(request)
    row = read_row({"messages": messages}, images=READER)
    encoded_row = tiny_tokenizer().encode_row(row)
    assert encoded_row.token_ids == expected.tokens
    spec = tiny_tokenizer().image_spec
    assert spec is not None
    ours = to_image_batch(encoded_row.images, spec)
    import torch

    theirs = ImageBatch.from_pixels([torch.from_numpy(np.ascontiguousarray(pixels)) for pixels in expected.images], spec.patch_size)
    assert ours.grids == theirs.grids
    assert torch.equal(ours.patches_pi, theirs.patches_pi)


def test_the_stream_of_one_image() -> None:
    row = read_row(
        {"messages": [{"role": "user", "content": [text("what?"), image(57, 29)]}, {"role": "assistant", "content": "that"}]}, images=READER
    )
    encoded_row = tiny_tokenizer().encode_row(row)
    assert tiny_tokenizer().decode(encoded_row.token_ids, keep_special=True) == (
        '<s>[MODEL_SETTINGS]{"reasoning_effort": "none"}[/MODEL_SETTINGS]'
        "[INST][IMG][IMG][IMG][IMG_BREAK][IMG][IMG][IMG][IMG_END]what?[/INST]that</s>"
    )
    assert [span.kind for span in encoded_row.spans] == ["begin", "settings", "user", "image", "user", "text", "end"]


def test_a_tools_image_stays_behind_its_text() -> None:
    # The rule "one image first" is for users only.
    calling = {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {}}}]}
    result = {"role": "tool", "tool_call_id": "c", "content": [text("shot: "), image(28, 28)]}
    messages = [{"role": "user", "content": "q"}, calling, result]
    prompt = tiny_tokenizer().encode_prompt_with_images(read_prompt(messages, images=READER))
    assert tiny_tokenizer().decode(prompt.token_ids, keep_special=True).endswith("[TOOL_RESULTS]shot: [IMG][IMG_END][/TOOL_RESULTS]")
    row = read_row({"messages": [*messages, {"role": "assistant", "content": "a"}]}, images=READER)
    assert tiny_tokenizer().encode_row(row).token_ids == tiny_tokenizer().encode_with_mistral_common(row)


def test_text_that_spells_image_tags_stays_text() -> None:
    row = read_row({"messages": [{"role": "user", "content": "[IMG][IMG_END]"}, {"role": "assistant", "content": "a"}]})
    assert tiny_tokenizer().ids.img not in tiny_tokenizer().encode_row(row).token_ids


def test_prompts_for_text_models_refuse_images() -> None:
    messages = [{"role": "user", "content": [image()]}]
    with pytest.raises(RowError) as caught:
        tiny_tokenizer().encode_prompt(read_prompt(messages, images=READER))
    assert caught.value.row_code == "unsupported-content"
    with pytest.raises(RowError):
        tiny_tokenizer().encode_chat(messages)


def test_a_tokenizer_without_an_image_section_refuses_images() -> None:
    path = tokenizer_file(400)
    blind = ChatTokenizer(_build_tekken(parse_json(path.read_bytes()), path), path)
    row: ChatRow = read_row({"messages": [{"role": "user", "content": [image()]}, {"role": "assistant", "content": "a"}]}, images=READER)
    for encode in (
        blind.encode_row,
        blind.encode_with_mistral_common,
        lambda row: blind.encode_prompt_with_images(replace(row, messages=row.messages[:1])),
    ):
        with pytest.raises(RowError, match="no image section") as caught:
            encode(row)
        assert caught.value.row_code == "unsupported-content"


def test_the_oracle_reports_a_damaged_image_as_a_bad_row() -> None:
    from support.images import hostile_bytes

    part = {"type": "image", "image": hostile_bytes("damaged pixels")}
    row = read_row({"messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "a"}]}, images=READER)
    with pytest.raises(RowError) as caught:
        tiny_tokenizer().encode_with_mistral_common(row)
    assert caught.value.row_code == "bad-image"
