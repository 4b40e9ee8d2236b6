"""Decoding token by token and finding stop texts, against decoding the whole answer at once."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from support.tokenizers import tiny_tokenizer

from ms4_train.inference.detokenize import StopMatcher, TextDecoder

if TYPE_CHECKING:
    from ms4_train.chat import ChatTokenizer

TEXT = "Grüße, 世界! 👩‍🔬 computes ½ of 10 — the answer is 5.\n\nDone."


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return tiny_tokenizer()


def run(matcher: StopMatcher, ids: list[int]) -> list[int]:
    """Tokens released in order until a match or the end."""
    out: list[int] = []
    for token_id in ids:
        out += matcher.push(token_id)
        if matcher.matched is not None:
            return out
    return out + matcher.finish()


def test_pieces_join_to_the_whole_and_hold_whole_characters_only(tokenizer: ChatTokenizer) -> None:
    ids = tokenizer.encode_text(TEXT)
    assert any(tokenizer.decode([token_id]).endswith("\ufffd") for token_id in ids), "no character is split: nothing is tested"
    decoder = TextDecoder(tokenizer)
    pieces = [decoder.push(token_id) for token_id in ids]
    assert "".join(pieces) == TEXT
    assert decoder.flush() == ""
    assert not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_never_become_a_character_are_given_out(tokenizer: ChatTokenizer) -> None:
    broken = tokenizer.encode_text("世")[:1]
    assert tokenizer.decode(broken) == "\ufffd"
    decoder = TextDecoder(tokenizer)
    assert decoder.push(broken[0]) == ""
    assert decoder.flush() == "\ufffd"
    text = "".join(decoder.push(broken[0]) for _ in range(40)) + decoder.flush()
    assert text == "\ufffd" * 40
    assert decoder.push(broken[0]) + decoder.push(tokenizer.encode_text("a")[0]) == "\ufffda"


def test_control_tokens_are_spelled_only_when_asked_for(tokenizer: ChatTokenizer) -> None:
    ids = [tokenizer.think_id, *tokenizer.encode_text("hm"), tokenizer.end_think_id, *tokenizer.encode_text("5")]
    assert "".join(map(TextDecoder(tokenizer).push, ids)) == "hm5"
    assert "".join(map(TextDecoder(tokenizer, keep_special=True).push, ids)) == "[THINK]hm[/THINK]5"


@pytest.mark.parametrize(
    "stop", [("answer",), ("wer is",), ("界",), ("🔬", "½"), ("\n\n",), ("5.", "answer"), ("G",), ("e", "ü"), ("Done.",), ("zzz",)]
)
def test_the_answer_ends_exactly_before_the_first_stop_text(tokenizer: ChatTokenizer, stop: tuple[str, ...]) -> None:
    matcher = StopMatcher(tokenizer, stop)
    out = run(matcher, tokenizer.encode_text(TEXT))
    positions = [TEXT.index(text) for text in stop if text in TEXT]
    expected = TEXT[: min(positions)] if positions else TEXT
    assert tokenizer.decode(out) == expected
    assert (matcher.matched is None) == (not positions)
    if matcher.matched is not None:
        assert TEXT.startswith(matcher.matched, len(expected))


def test_tokens_are_held_back_only_while_a_stop_text_may_begin(tokenizer: ChatTokenizer) -> None:
    """After each push, what is held back must be exactly a possible beginning of a stop text (or a split character)."""
    rng = random.Random(1)
    for _ in range(60):
        text = "".join(rng.choice("abc") for _ in range(30))
        stop = tuple("".join(rng.choice("abc") for _ in range(rng.randint(1, 5))) for _ in range(rng.randint(1, 3)))
        matcher = StopMatcher(tokenizer, stop)
        pushed: list[int] = []
        out: list[int] = []
        for token_id in tokenizer.encode_text(text):
            pushed.append(token_id)
            out += matcher.push(token_id)
            if matcher.matched is not None:
                break
            held = tokenizer.decode(pushed[len(out) :])
            last = tokenizer.decode(pushed[len(out) : len(out) + 1])
            # The earliest possible beginning lies in the first token that is held.
            assert not held or any(stop_text.startswith(held[start:]) for stop_text in stop for start in range(len(last)))
        first = min((text.index(stop_text) for stop_text in stop if stop_text in text), default=None)
        if first is None:
            assert tokenizer.decode(out + matcher.finish()) == text
        else:
            seen = tokenizer.decode(pushed)
            assert tokenizer.decode(out) == seen[: min(seen.index(stop_text) for stop_text in stop if stop_text in seen)]


def test_a_stop_text_may_be_a_control_token_and_never_spans_one(tokenizer: ChatTokenizer) -> None:
    ids = [*tokenizer.encode_text("no"), tokenizer.end_think_id, *tokenizer.encode_text("de node")]
    spelled = StopMatcher(tokenizer, ("[/THINK]",))
    assert tokenizer.decode(run(spelled, ids)) == "no"
    spanning = StopMatcher(tokenizer, ("node",))
    assert run(spanning, ids) == [*tokenizer.encode_text("no"), tokenizer.end_think_id, *tokenizer.encode_text("de ")]


def test_without_stop_texts_tokens_pass_straight_through(tokenizer: ChatTokenizer) -> None:
    matcher = StopMatcher(tokenizer, ())
    assert [matcher.push(token_id) for token_id in (5, 6)] == [[5], [6]]
    assert matcher.finish() == []
