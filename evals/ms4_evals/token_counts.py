"""Counts the tokens of every model's texts with one tokenizer, so that lengths of different models can be compared.

It is the tekken vocabulary that mistral-common ships, of the family that Mistral Small 4 has; text is counted without special tokens. What
a model's own tokenizer counts is stored beside it (``usage_tokens``). The byte pairs are handed to tiktoken directly: mistral-common's own
class gives the same tokens and holds twice the memory. Exercise it: ``pytest tests/evals/ms4_evals/test_token_counts.py``.
"""

from __future__ import annotations

import base64
import functools
from pathlib import Path
from typing import TYPE_CHECKING

from ms4_train.untrusted import parse_json, read_bytes

if TYPE_CHECKING:
    from tiktoken import Encoding

TOKENIZER_NAME = "tekken_240911"

_MAX_ONE_PIECE = 50_000
"""Longer texts are counted in pieces: the tokenizer's pattern needs memory and a stack that grow with its text."""

_MAX_BYTES = 64 << 20


def count_tokens(text: str) -> int:
    """Tokens of a text; one more at most per 50,000 characters of a longer one, where a piece may cut a token in two."""
    encoding = _encoding()
    return sum(len(encoding.encode_ordinary(text[start : start + _MAX_ONE_PIECE])) for start in range(0, len(text), _MAX_ONE_PIECE))


@functools.cache
def _encoding() -> Encoding:
    import mistral_common
    from tiktoken import Encoding

    path = Path(mistral_common.__file__).parent / "data" / f"{TOKENIZER_NAME}.json"
    content = parse_json(read_bytes(path, max_bytes=_MAX_BYTES), file=path)
    config = content["config"]
    pairs = content["vocab"][: config["default_vocab_size"] - config["default_num_special_tokens"]]
    ranks = {base64.b64decode(pair["token_bytes"]): pair["rank"] for pair in pairs}
    return Encoding(TOKENIZER_NAME, pat_str=config["pattern"], mergeable_ranks=ranks, special_tokens={})
