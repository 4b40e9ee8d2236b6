"""What a server's answers have in common, learned while it answers, so that one that differs is noticed.

Two things are known only by comparison. The name of the model: servers give the name they were asked for, or another one (a path, a dated
version), but always the same. And how many chunks an answer of so many tokens has: a chunk that a proxy sent twice makes one too many.

A stream whose chunks hold several tokens hides a doubled chunk, and so does one without usage; there the count says nothing.
Exercise it: ``pytest tests/evals/ms4_evals/clients/endpoint/test_habits.py``.
"""

from __future__ import annotations

from collections import Counter

from ms4_evals.clients.endpoint.failures import bad_response
from ms4_evals.clients.endpoint.replies import Reply

ENOUGH_ANSWERS = 4
"""Answers after which a server's own way of counting is taken over from what most servers do."""

_USUAL_SURPLUS = {"stop": 1, "length": 0}
"""Tokens minus chunks of text where each token is a chunk: the token that ends an answer has no text."""
_MOST = 0.6
_KINDS_OF_NAMES = 50


class Habits:
    """One server's."""

    def __init__(self) -> None:
        self._names: Counter[str] = Counter()
        self._surplus: dict[str, Counter[int]] = {}

    def check(self, reply: Reply, requested_model: str) -> None:
        """Take one more answer in, and compare it with the others.

        Raises:
            RequestFailure: it is of another model, or holds a chunk twice.
        """
        self._check_name(reply.model, requested_model)
        self._check_chunks(reply)

    def _check_name(self, name: str, requested: str) -> None:
        if not name:
            return
        if len(self._names) < _KINDS_OF_NAMES or name in self._names:
            self._names[name] += 1
        if name == requested:
            return
        if requested in self._names:
            raise bad_response(f"an answer of the model {name!r:.80} instead of {requested!r:.80}")
        (usual, times), *_ = self._names.most_common(1)
        # A server that goes by another name must say it twice before it is believed: the first answer may be the wrong one.
        if name != usual or times < 2:
            raise bad_response(f"an answer of the model {name!r:.80}; {requested!r:.80} was asked for")

    def _check_chunks(self, reply: Reply) -> None:
        tokens = reply.usage.completion_tokens
        if reply.text_chunks is None or tokens is None:
            return
        counts = self._surplus.setdefault(reply.finish_reason, Counter())
        surplus = tokens - reply.text_chunks
        counts[min(max(surplus, -3), 3)] += 1
        if reply.has_twins and surplus < self._expected_surplus(reply.finish_reason, counts):
            message = f"{reply.text_chunks} chunks of text for {tokens} tokens, two neighbours of them equal: one was sent twice"
            raise bad_response(message)

    def _expected_surplus(self, finish_reason: str, counts: Counter[int]) -> int:
        """Least tokens minus chunks of an honest answer; with a server that does not send token by token, none is too few."""
        if counts.total() < ENOUGH_ANSWERS:
            return _USUAL_SURPLUS[finish_reason]
        (usual, times), *_ = counts.most_common(1)
        if times >= _MOST * counts.total() and usual <= 1:
            return usual
        return min(usual, 0)
