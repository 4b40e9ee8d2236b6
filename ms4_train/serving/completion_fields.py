"""The body of a completion request: a prompt without chat format.

Exercise it: ``pytest tests/ms4_train/serving/test_completion_fields.py``.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ms4_train.serving.chat_fields import ResponseFormat
from ms4_train.serving.fields import SharedFields, TokenId, Whole

_Ids = Annotated[list[TokenId], Field(min_length=1)]


class CompletionRequest(SharedFields):
    """Prompts to go on with. Texts get a begin token, token ids are taken as they are."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=1024)]
        | _Ids
        | Annotated[list[_Ids], Field(min_length=1, max_length=1024)]
    )
    echo: bool | None = None
    """Whether an answer begins with its prompt; with ``logprobs`` the prompt's tokens have theirs too. Not in a stream."""
    logprobs: Annotated[Whole | None, Field(ge=0, le=20)] = None
    best_of: Annotated[Whole | None, Field(ge=1, le=1024)] = None
    """Accepted where it equals ``n``."""
    suffix: None = None
    skip_special_tokens: bool | None = None
    """False: control tokens appear by their spelling."""
    response_format: ResponseFormat | None = None
