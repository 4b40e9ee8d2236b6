"""Token ids to text as they come, and the search for stop texts in what they spell.

One token may hold part of a character, and a stop text may begin in the middle of one token and end in another. ``TextDecoder`` gives out
whole characters only; ``StopMatcher`` holds tokens back for as long as they could still turn out to begin a stop text.
Exercise it: ``pytest tests/ms4_train/inference/test_detokenize.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_REPLACEMENT = "\ufffd"
# A character takes at most four bytes, but a token may end one character and begin the next, so split characters may form a chain.
# Bytes that never become a character are given out as replacement characters after this many tokens.
_LONGEST_CHAIN = 16


class EngineTokenizer(Protocol):
    """What the engine needs of a tokenizer; ``ms4_train.chat.ChatTokenizer`` has it."""

    @property
    def eos_id(self) -> int:
        """The token that ends an answer."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of token ids, control tokens included."""
        ...

    def decode(self, ids: Sequence[int], *, keep_special: bool = False) -> str:
        """Text of ``ids``; control tokens are spelled out if ``keep_special``, else dropped."""
        ...

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text, without control tokens."""
        ...


class TextDecoder:
    """Decodes one answer token by token.

    Args:
        tokenizer: spells the tokens.
        keep_special: whether control tokens appear by their spelling (``[/THINK]``) or not at all.
    """

    def __init__(self, tokenizer: EngineTokenizer, *, keep_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._keep_special = keep_special
        self._pending: list[int] = []

    @property
    def is_between_characters(self) -> bool:
        """Whether everything pushed so far has been given out."""
        return not self._pending

    def push(self, token_id: int) -> str:
        """Text that ``token_id`` completes; empty in the middle of a character."""
        self._pending.append(token_id)
        text = self._tokenizer.decode(self._pending, keep_special=self._keep_special)
        if text.endswith(_REPLACEMENT) and len(self._pending) < _LONGEST_CHAIN:
            return ""
        self._pending.clear()
        return text

    def flush(self) -> str:
        """Text of an incomplete last character (replacement characters), or nothing."""
        text = self._tokenizer.decode(self._pending, keep_special=self._keep_special) if self._pending else ""
        self._pending.clear()
        return text


class StopMatcher:
    """Finds the first stop text in one answer.

    Args:
        tokenizer: spells the tokens.
        stop: non-empty texts. Without any, tokens pass straight through.
        include: whether the stop text itself belongs to the answer.
    """

    def __init__(self, tokenizer: EngineTokenizer, stop: tuple[str, ...], *, include: bool = False) -> None:
        self.matched: str | None = None
        self._include = include
        self._tokenizer = tokenizer
        self._stop = stop
        self._decoder = TextDecoder(tokenizer, keep_special=True)
        self._open_ids: list[int] = []  # tokens of a character that is not complete yet
        self._held: list[tuple[list[int], str]] = []  # tokens that complete characters together, and their text
        self._held_text = ""

    def push(self, token_id: int) -> list[int]:
        """Tokens that are now certain to belong to the answer. Sets ``matched`` on a match, after which nothing may be pushed."""
        if not self._stop:
            return [token_id]
        assert self.matched is None, "the answer has ended"
        self._open_ids.append(token_id)
        text = self._decoder.push(token_id)
        if not self._decoder.is_between_characters:
            return []
        self._held.append((self._open_ids, text))
        self._open_ids = []
        self._held_text += text
        found = [(self._held_text.index(stop), -len(stop), stop) for stop in self._stop if stop in self._held_text]
        if not found:
            return self._release(self._first_possible_start())[0]
        start, _, self.matched = min(found)
        end = start + len(self.matched) if self._include else start
        tokens, length = self._release(end)
        # What is left before the answer's end is the first part of the token that it lies in.
        return tokens + self._tokenizer.encode_text(self._held_text[: end - length]) if length < end else tokens

    def finish(self) -> list[int]:
        """The tokens still held back, when the answer ends without a match."""
        tokens = [token_id for ids, _ in self._held for token_id in ids] + self._open_ids
        self._held, self._held_text, self._open_ids = [], "", []
        return tokens

    def _first_possible_start(self) -> int:
        """Where in the held text an unfinished stop text may begin at the earliest; its length if nowhere."""
        text = self._held_text
        longest = max(len(stop) for stop in self._stop)
        for start in range(max(0, len(text) - longest + 1), len(text)):
            if any(stop.startswith(text[start:]) for stop in self._stop):
                return start
        return len(text)

    def _release(self, end: int) -> tuple[list[int], int]:
        """Takes the tokens that end within the first ``end`` characters of the held text; returns them and the characters taken."""
        tokens: list[int] = []
        length = 0
        count = 0
        for ids, text in self._held:
            if length + len(text) > end:
                break
            tokens += ids
            length += len(text)
            count += 1
        del self._held[:count]
        self._held_text = self._held_text[length:]
        return tokens, length
