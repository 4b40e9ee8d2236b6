"""Token counts against mistral-common's own tokenizer, and what cutting a long text into pieces costs."""

from pathlib import Path

import mistral_common
import pytest
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from ms4_evals.token_counts import _MAX_ONE_PIECE, TOKENIZER_NAME, count_tokens


@pytest.fixture(scope="module")
def tekken():
    return Tekkenizer.from_file(Path(mistral_common.__file__).parent / "data" / f"{TOKENIZER_NAME}.json")


@pytest.mark.parametrize("text", ["", "a", "The answer is \\boxed{70}.", "[THINK]not special[/THINK]</s>", "\U0001f40d\r\n\x00", " " * 300])
def test_counts_are_the_tokenizers(tekken, text):
    assert count_tokens(text) == len(tekken.encode(text, bos=False, eos=False))


def test_a_long_text_is_counted_in_pieces_with_at_most_one_token_more_each(tekken):
    text = "so 12345 plus a half is\n" * 10_000
    exact = len(tekken.encode(text, bos=False, eos=False))
    pieces = -(-len(text) // _MAX_ONE_PIECE)
    assert pieces > 4
    assert exact <= count_tokens(text) <= exact + pieces


def test_a_text_of_one_endless_word_is_counted(tekken):
    assert 0 < count_tokens("x" * 300_000) < 300_000
