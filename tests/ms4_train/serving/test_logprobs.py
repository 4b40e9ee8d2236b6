"""Logprobs in the clients' forms; OpenAI's own types parse them."""

from __future__ import annotations

import math

from openai.types.chat.chat_completion import ChoiceLogprobs
from openai.types.completion_choice import Logprobs

from ms4_train.inference.request import TokenLogprobs
from ms4_train.serving.logprobs import IMPOSSIBLE, chat_logprobs, completion_logprobs, prompt_logprobs


def entries(tokenizer, text: str) -> list[TokenLogprobs]:
    ids = tokenizer.encode_text(text)
    return [TokenLogprobs(token_id, -0.5, 2, ((token_id + 1, -0.25), (token_id, -0.5))) for token_id in ids]


def test_bytes_spell_what_tokens_cannot(tokenizer) -> None:
    found = ChoiceLogprobs.model_validate(chat_logprobs(entries(tokenizer, "aé€😀"), tokenizer))
    assert found.content is not None
    assert b"".join(bytes(token.bytes or []) for token in found.content).decode() == "aé€😀"
    assert [len(token.top_logprobs) for token in found.content] == [2] * len(found.content)


def test_control_tokens_are_spelled(tokenizer) -> None:
    entry = TokenLogprobs(tokenizer.ids.think, -math.inf, 1, ())
    (token,) = chat_logprobs([entry], tokenizer)["content"]
    assert (token["token"], bytes(token["bytes"]), token["logprob"]) == ("[THINK]", b"[THINK]", IMPOSSIBLE)


def test_completions_have_offsets(tokenizer) -> None:
    given = entries(tokenizer, "hello")
    ids = [entry.token_id for entry in given]
    found = Logprobs.model_validate(completion_logprobs(given, ids, 7, tokenizer))
    assert found.tokens is not None
    assert "".join(found.tokens) == "hello"
    assert found.text_offset == [7 + len("".join(found.tokens[:end])) for end in range(len(found.tokens))]


def test_the_first_token_of_a_prompt_has_none(tokenizer) -> None:
    given = entries(tokenizer, "hello")
    found = completion_logprobs([None, *given], [tokenizer.bos_id, *[entry.token_id for entry in given]], 0, tokenizer)
    assert found["token_logprobs"] == [None, *[-0.5] * len(given)]
    assert found["top_logprobs"][0] is None
    assert found["tokens"][0] == "<s>"


def test_without_top_there_is_none(tokenizer) -> None:
    given = [TokenLogprobs(50, -1.0, 1, ())]
    assert completion_logprobs(given, [50], 0, tokenizer)["top_logprobs"] is None


def test_a_prompt_token_is_among_its_own(tokenizer) -> None:
    first, second = prompt_logprobs([None, TokenLogprobs(50, -3.0, 9, ((60, -0.1),))], tokenizer)
    assert first is None
    assert second is not None
    assert list(second) == ["50", "60"]
    assert (second["50"]["rank"], second["60"]["rank"]) == (9, 1)
