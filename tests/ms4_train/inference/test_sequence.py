"""One answer: how it ends, what belongs to it, and how its blocks are named."""

from __future__ import annotations

import pytest

from ms4_train.inference.blocks import first_name
from ms4_train.inference.detokenize import StopMatcher
from ms4_train.inference.request import GenerationRequest
from ms4_train.inference.sampling_params import SamplingParams
from ms4_train.inference.sequence import PromptImages, Sequence
from ms4_train.inference.thinking import Thought

EOS = 2


def make(tokenizer, prompt=(5, 6, 7), images=None, adapter="", **sampling) -> Sequence:
    request = GenerationRequest("r", prompt, SamplingParams(**sampling))
    matcher = StopMatcher(tokenizer, request.sampling.stop, include=request.sampling.include_stop)
    return Sequence(request, 0, 0, matcher, Thought(None, None), root=first_name(adapter), images=images)


def feed(sequence: Sequence, tokens: list[int]) -> str | None:
    for token in tokens:
        reason = sequence.accept(token, None, EOS)
        if reason is not None:
            return reason
    return None


def test_the_end_token_ends_and_is_left_out(tokenizer) -> None:
    sequence = make(tokenizer)
    assert feed(sequence, [40, 41, EOS, 42]) == "stop"
    assert (sequence.output_ids, sequence.generated_ids, sequence.stop_reason) == ([40, 41], [40, 41, EOS], None)
    assert sequence.token_ids == [5, 6, 7, 40, 41, EOS]


def test_it_may_be_told_to_go_on(tokenizer) -> None:
    sequence = make(tokenizer, ignore_eos=True, max_tokens=3)
    assert feed(sequence, [40, EOS, 42, 43]) == "length"
    assert sequence.output_ids == [40, EOS, 42]


@pytest.mark.parametrize(("include", "expected"), [(False, [40]), (True, [40, 41])])
def test_stop_tokens(tokenizer, include, expected) -> None:
    sequence = make(tokenizer, stop_token_ids=(41,), include_stop=include)
    assert feed(sequence, [40, 41]) == "stop"
    assert (sequence.output_ids, sequence.stop_reason) == (expected, "41")


@pytest.mark.parametrize("include", [False, True])
def test_stop_texts_across_and_inside_tokens(tokenizer, include) -> None:
    text = "one two three"
    tokens = tokenizer.encode_text(text)
    sequence = make(tokenizer, stop=("o t",), include_stop=include)
    assert feed(sequence, tokens) == "stop"
    assert tokenizer.decode(sequence.output_ids) == ("one two t" if include else "one tw")
    assert sequence.stop_reason == "o t"


def test_nothing_stops_before_the_least_number_of_tokens(tokenizer) -> None:
    tokens = tokenizer.encode_text("abcabcabc")
    sequence = make(tokenizer, stop=("abc",), min_tokens=len(tokens), max_tokens=len(tokens) + 5)
    assert feed(sequence, tokens[:-1]) is None
    assert tokenizer.decode(sequence.output_ids) == tokenizer.decode(tokens[:-1])


def test_block_names_depend_on_tokens_adapter_and_images(tokenizer) -> None:
    prompt = tuple(range(20, 32))
    plain = make(tokenizer, prompt).block_names(3, 4)
    assert plain == make(tokenizer, prompt).block_names(3, 4)
    assert len(set(plain)) == 3
    assert make(tokenizer, prompt, adapter="french 1").block_names(1, 4)[0] != plain[0]
    other = make(tokenizer, (*prompt[:11], 99)).block_names(3, 4)
    assert other[:2] == plain[:2]
    assert other[2] != plain[2]
    first, second = (
        make(tokenizer, prompt, images=PromptImages((5, 6, 9), (5, 9), digests)).block_names(3, 4)
        for digests in ((b"cat", b"dog"), (b"cat", b"cow"))
    )
    assert first[0] == plain[0] == second[0]  # before the first image
    assert first[1] == second[1] != plain[1]
    assert first[2] != second[2]


def test_places_of_images_within_a_piece() -> None:
    images = PromptImages((5, 6, 9), (5, 9), (b"a", b"b"))
    assert images.between(0, 5) == (0, 0)
    assert images.between(5, 7) == (0, 2)
    assert images.between(6, 20) == (1, 3)
    assert images.digests_between(0, 5) == ()
    assert images.digests_between(4, 9) == (b"a",)
