"""How many requests a server gets at once: fewer when it pushes back, slowly more while it does not.

Exercise it: ``pytest tests/evals/ms4_evals/clients/endpoint/test_limit.py``.
"""

from __future__ import annotations


class AdaptiveLimit:
    """Slow increase, quick decrease, judged in rounds.

    A round begins with every change; outcomes of requests sent before it say nothing about the new limit and are left out. The limit
    halves when a tenth of it was pushed back within a round, two at least: single failures, which every busy server has, do not slow a run
    down. It grows by an eighth, one at least, after as many successes as the limit allows at once, eight at least.

    Args:
        ceiling: the limit at first and at most.
    """

    def __init__(self, ceiling: int) -> None:
        self._ceiling = ceiling
        self._round = 0
        self._successes = self._push_backs = 0
        self.value = ceiling

    @property
    def round(self) -> int:
        """To be given back with the outcome of a request that is sent now."""
        return self._round

    def succeeded(self, sent_in: int) -> None:
        """A request of round ``sent_in`` was answered."""
        if sent_in == self._round:
            self._successes += 1
            if self._successes >= max(self.value, 8):
                self._change(min(self.value + max(1, self.value // 8), self._ceiling))

    def pushed_back(self, sent_in: int) -> None:
        """A request of round ``sent_in`` was too much for the server."""
        if sent_in == self._round:
            self._push_backs += 1
            if self._push_backs >= max(2, self.value / 10):
                self._change(max(self.value // 2, 1))

    def _change(self, value: int) -> None:
        self.value = value
        self._round += 1
        self._successes = self._push_backs = 0
