"""Leaves a server alone that fails again and again, and tries it with one request after a while.

Exercise it: ``pytest tests/evals/ms4_evals/clients/endpoint/test_circuit.py``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Circuit:
    """Of one server. Times are seconds of one clock, given by the caller.

    It is closed (requests flow) until ``threshold`` failures in a row; then open for a pause that doubles each time the server is tried
    in vain. After the pause one request, the probe, may go; its success closes the circuit.

    Attributes:
        threshold: failures in a row that open it.
        first_pause, longest_pause: seconds.
    """

    threshold: int = 5
    first_pause: float = 1.0
    longest_pause: float = 60.0
    is_closed: bool = True
    opens_at: float = 0.0
    _failures: int = 0
    _pauses: int = 0
    _is_probing: bool = False

    def may_send(self, now: float) -> bool:
        """Whether a request may go out now."""
        return self.is_closed or (now >= self.opens_at and not self._is_probing)

    def sent(self) -> None:
        """A request goes out: the probe, where the circuit is not closed."""
        self._is_probing = not self.is_closed

    def succeeded(self) -> None:
        """The server answered, be it with a refusal."""
        self.is_closed = True
        self._failures = self._pauses = 0
        self._is_probing = False

    def failed(self, now: float) -> None:
        """The server did not answer as it should."""
        self._failures += 1
        if self.is_closed and self._failures < self.threshold:
            return
        if self.is_closed or self._is_probing:
            self.trip(now)

    def trip(self, now: float) -> None:
        """Open it, as after the last failure that it takes."""
        self.is_closed = self._is_probing = False
        self.opens_at = now + min(self.first_pause * 2.0 ** min(self._pauses, 30), self.longest_pause)
        self._pauses += 1

    def gave_up(self) -> None:
        """A request ended without telling anything about the server: it was cancelled."""
        self._is_probing = False
