"""Counts the tokens of every model's texts with one tokenizer, so that lengths of different models can be compared.

It is the tekken vocabulary that mistral-common ships, of the family that Mistral Small 4 has; text is counted without special tokens. What
a model's own tokenizer counts is stored beside it (``usage_tokens``). Exercise it: ``pytest tests/evals/ms4_evals/test_token_counts.py``.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

TOKENIZER_NAME = "tekken_240911"

_MAX_ONE_PIECE = 50_000
"""Longer texts are counted in pieces: the tokenizer's pattern needs memory and a stack that grow with its text."""


def count_tokens(text: str) -> int:
    """Tokens of a text; one more at most per 50,000 characters of a longer one, where a piece may cut a token in two."""
    return sum(
        len(_tokenizer().encode(text[start : start + _MAX_ONE_PIECE], bos=False, eos=False))
        for start in range(0, len(text), _MAX_ONE_PIECE)
    )


@functools.cache
def _tokenizer() -> Tekkenizer:
    import mistral_common
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    return Tekkenizer.from_file(Path(mistral_common.__file__).parent / "data" / f"{TOKENIZER_NAME}.json")
