r"""Compares the prompts with the token counts that the publishers of AA-LCR give: are these the right documents, whole and in order?

Two checks, by what is at hand:

- **exact**: cl100k_base, the tokenizer of the published counts, must give every count to the token. Its vocabulary is no part of tiktoken
  (which downloads it); it is used where tiktoken has cached it, or where an installed package carries the same file (``llama-index-core``
  does), and only if its SHA-256 is the one that tiktoken demands. Nothing is ever downloaded here.
- **tekken**: otherwise the vocabulary that mistral-common ships counts the documents of each set, which must agree within ``TOLERANCE``
  with what was counted on texts that had passed the exact check (``published``). A missing, foreign, cut or doubled document is found, as
  the shortest of a set has more tokens than the tolerance; a changed word is not.

Neither can see that two documents have changed places; their order is that of the table's file names, or of the package's numbers.

A prompt is counted in two pieces, documents and question. cl100k_base's pattern always splits between them (letters before, line feeds
after), so the sum is the count of the whole; this was confirmed over all 100 prompts.

Exercise it: ``pytest tests/evals/ms4_evals/tasks/lcr/test_tokens.py``.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.metadata
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ms4_evals.tasks.lcr.prompt import head, tail
from ms4_evals.tasks.lcr.published import GARBLED_EXTRA_TOKENS, SET_OF_QUESTION
from ms4_evals.tasks.lcr.questions import LcrQuestion
from ms4_evals.token_counts import TOKENIZER_NAME, count_tokens
from ms4_train.errors import EvaluationError, UntrustedInputError
from ms4_train.untrusted import read_bytes

if TYPE_CHECKING:
    import tiktoken

CL100K_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
_CL100K_CACHED = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
"""The name that tiktoken caches the vocabulary under: the SHA-1 of its address."""
_CL100K_PATTERN = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
"""How cl100k_base splits text before it merges bytes; quoted from tiktoken 0.14, tiktoken_ext/openai_public.py (MIT)."""
_CARRIERS = (("llama-index-core", f"llama_index/core/_static/tiktoken_cache/{_CL100K_CACHED}"),)
_MAX_VOCABULARY_BYTES = 16 << 20

TOLERANCE = 0.0005
"""Share by which a count of the tekken vocabulary may be off."""


@dataclass(frozen=True)
class TokenCheck:
    """What a check found.

    Attributes:
        tokenizer: ``cl100k_base`` or the tekken vocabulary's name.
        is_exact: every count was compared to the token.
        prompts: how many were.
        longest: most tokens of a prompt under that tokenizer.
    """

    tokenizer: str
    is_exact: bool
    prompts: int
    longest: int


def check_tokens(questions: Iterable[LcrQuestion], *, vocabulary: Path | None = None) -> TokenCheck:
    """Compare the prompts of the questions with their published counts.

    Args:
        questions: any of them.
        vocabulary: file of cl100k_base; default: ``find_cl100k``.

    Raises:
        EvaluationError: a prompt differs, or ``vocabulary`` is another file.
    """
    vocabulary = vocabulary or find_cl100k()
    count = functools.partial(_cl100k_tokens, load_cl100k(vocabulary)) if vocabulary else count_tokens
    heads: dict[int, int] = {}
    longest = prompts = 0
    for question in questions:
        if id(question.documents) not in heads:
            heads[id(question.documents)] = count(head(question.documents))
        documents, asking = heads[id(question.documents)], count(tail(question.question))
        if vocabulary:
            expected = question.input_tokens - GARBLED_EXTRA_TOKENS.get(question.number, 0)
            _compare(question, documents + asking, expected, "cl100k_base", 0)
        else:
            expected = SET_OF_QUESTION[question.number].tekken_tokens
            _compare(question, documents, expected, TOKENIZER_NAME, int(expected * TOLERANCE))
        longest, prompts = max(longest, documents + asking), prompts + 1
    return TokenCheck("cl100k_base" if vocabulary else TOKENIZER_NAME, vocabulary is not None, prompts, longest)


def find_cl100k() -> Path | None:
    """A file of cl100k_base on this machine, its content checked; None where there is none."""
    folders = [os.environ.get(name) for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")]
    candidates = [Path(folder) / _CL100K_CACHED for folder in folders if folder]
    candidates.append(Path(tempfile.gettempdir()) / "data-gym-cache" / _CL100K_CACHED)
    for package, name in _CARRIERS:
        try:
            candidates.append(Path(str(importlib.metadata.distribution(package).locate_file(name))))
        except importlib.metadata.PackageNotFoundError:
            continue
    return next((path for path in candidates if path.is_file() and _is_cl100k(path)), None)


def load_cl100k(path: Path) -> tiktoken.Encoding:
    """The tokenizer of the published counts.

    Raises:
        EvaluationError: the file is another one.
        UntrustedInputError: the file cannot be read.
    """
    import tiktoken

    data = read_bytes(path, max_bytes=_MAX_VOCABULARY_BYTES)
    if hashlib.sha256(data).hexdigest() != CL100K_SHA256:
        raise EvaluationError("is not the vocabulary cl100k_base: its SHA-256 differs.", file=path, fix="name tiktoken's own file.")
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in data.splitlines() if line)}
    return tiktoken.Encoding("cl100k_base", pat_str=_CL100K_PATTERN, mergeable_ranks=ranks, special_tokens={})


def _cl100k_tokens(encoding: tiktoken.Encoding, text: str) -> int:
    return len(encoding.encode_ordinary(text))


def _is_cl100k(path: Path) -> bool:
    try:
        return hashlib.sha256(read_bytes(path, max_bytes=_MAX_VOCABULARY_BYTES)).hexdigest() == CL100K_SHA256
    except UntrustedInputError:
        return False


def _compare(question: LcrQuestion, tokens: int, expected: int, tokenizer: str, slack: int) -> None:
    if abs(tokens - expected) > slack:
        what = f"documents of question {question.number} have" if slack else f"prompt of question {question.number} has"
        raise EvaluationError(
            f"the {what} {tokens:,} tokens ({tokenizer}); the published documents give {expected:,}.",
            key=f"{question.category}/{question.document_set}",
            fix="use the published documents, unchanged and in the order of data_source_filenames.",
        )
