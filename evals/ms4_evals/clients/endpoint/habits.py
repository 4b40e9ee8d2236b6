"""What a server's answers have in common, learned while it answers, so that one that differs is noticed.

Two things are known only by comparison. The name of the model: servers give the name they were asked for, or another one (a path, a dated
version), but always the same. And how many chunks an answer of so many tokens has: a chunk that a proxy sent twice makes one too many. How
many a server's honest answers have depends on whether it counts the end token and the tags of thinking, and whether it sends those.

A stream whose chunks hold several tokens hides a doubled chunk, and so does one without usage; there the count says nothing.
Exercise it: ``pytest tests/evals/ms4_evals/clients/endpoint/test_habits.py``.
"""

from __future__ import annotations

from collections import Counter

from ms4_evals.clients.endpoint.failures import bad_response
from ms4_evals.clients.endpoint.replies import Reply

ENOUGH_ANSWERS = 4
"""Answers of one sort (of the same end, with thinking or without) after which a server's way of counting is known."""

_USUAL_SURPLUS = {"stop": 1, "length": 0}
"""Tokens minus chunks of text where each token is a chunk: the token that ends an answer has no text. Tags may add to it."""
_MOST = 0.6
_MANY = 8
_KINDS_OF_NAMES = 50


class Habits:
    """One server's."""

    def __init__(self) -> None:
        self._names: Counter[str] = Counter()
        self._surplus: dict[tuple[str, bool], Counter[int]] = {}

    def learn(self, reply: Reply, requested_model: str) -> None:
        """Take one more answer in.

        Raises:
            RequestFailure: it is of another model.
        """
        self._check_name(reply.model, requested_model)
        surplus = _surplus(reply)
        if surplus is not None:
            self._counts(reply)[min(max(surplus, -_MANY), _MANY)] += 1

    def is_known(self, reply: Reply) -> bool:
        """Whether enough answers of this sort were seen to judge it; also when there is nothing to judge."""
        return not reply.has_twins or _surplus(reply) is None or self._counts(reply).total() >= ENOUGH_ANSWERS

    def check(self, reply: Reply) -> None:
        """Compare an answer that was taken in with the others of its sort.

        Raises:
            RequestFailure: it holds a chunk twice.
        """
        surplus = _surplus(reply)
        if surplus is not None and reply.has_twins and surplus < self._least_surplus(reply):
            tokens = reply.usage.completion_tokens
            raise bad_response(f"{reply.text_chunks} chunks of text for {tokens} tokens, two neighbours of them equal: one was sent twice")

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

    def _counts(self, reply: Reply) -> Counter[int]:
        return self._surplus.setdefault((reply.finish_reason, bool(reply.thinking)), Counter())

    def _least_surplus(self, reply: Reply) -> int:
        """Least tokens minus chunks of an honest answer of this sort."""
        counts = self._counts(reply)
        if counts.total() < ENOUGH_ANSWERS:
            # Too few to tell: one that says more hidden tokens than this is the honest one of two that differ.
            return max(_USUAL_SURPLUS[reply.finish_reason], *(surplus for surplus in counts if surplus < _MANY), -_MANY)
        (usual, times), *_ = counts.most_common(1)
        # Where chunks hold several tokens the numbers differ from answer to answer, and only more chunks than tokens are too many.
        return usual if times >= _MOST * counts.total() and usual < _MANY else min(usual, 0)


def _surplus(reply: Reply) -> int | None:
    if reply.text_chunks is None or reply.usage.completion_tokens is None:
        return None
    return reply.usage.completion_tokens - reply.text_chunks
