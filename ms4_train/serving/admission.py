"""Who may come in: bounds on the answers at work and on the bytes held for them, over all clients together.

A ticket is held from a request's head until the engine has let go of its last answer, so a client that comes and goes gains nothing.
Exercise it: ``pytest tests/ms4_train/serving/test_admission.py``.
"""

from __future__ import annotations

import math
import threading

from ms4_train.serving.failures import ApiError, bad_request

_SMOOTHING = 0.1
_MAX_RETRY_SECONDS = 60


class Admission:
    """Counts answers and bytes; safe to use from several threads.

    Args:
        max_answers: computed or waiting at once.
        max_bytes: of bodies and image pixels held at once.

    Attributes:
        answers, held_bytes: now.
        is_stopping: set it to refuse all new requests.
    """

    def __init__(self, max_answers: int, max_bytes: int) -> None:
        self.max_answers = max_answers
        self.max_bytes = max_bytes
        self.answers = 0
        self.held_bytes = 0
        self.is_stopping = False
        self._seconds_per_answer = 1.0
        self._lock = threading.Lock()

    def enter(self) -> Ticket:
        """A ticket for one answer.

        Raises:
            ApiError: 503 while the server stops, 429 when it is full.
        """
        if self.is_stopping:
            raise ApiError(503, "The server is stopping.", code="stopping", retry_after=self.retry_after, close=True)
        ticket = Ticket(self)
        ticket.add_answers(1)
        return ticket

    @property
    def retry_after(self) -> int:
        """Seconds after which a place may be free, from how long answers took lately."""
        return max(1, min(_MAX_RETRY_SECONDS, math.ceil(self._seconds_per_answer)))

    def note_seconds(self, seconds: float) -> None:
        """Learn how long an answer took."""
        self._seconds_per_answer += _SMOOTHING * (seconds - self._seconds_per_answer)

    def take(self, answers: int, held: int) -> None:
        """Count more answers and bytes. Raises as ``Ticket`` says."""
        with self._lock:
            if answers and self.answers + answers > self.max_answers:
                raise self._overloaded("answers are at work")
            if held and self.held_bytes + held > self.max_bytes:
                raise self._overloaded("bytes of requests are held")
            self.answers += answers
            self.held_bytes += held

    def give_back(self, answers: int, held: int) -> None:
        """Count fewer."""
        with self._lock:
            self.answers -= answers
            self.held_bytes -= held

    def _overloaded(self, what: str) -> ApiError:
        message = f"The server is overloaded: as many {what} as it takes. Try again later."
        return ApiError(429, message, code="overloaded", retry_after=self.retry_after)


class Ticket:
    """What one request has taken."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._answers = 0
        self._bytes = 0

    def add_answers(self, count: int) -> None:
        """Take places for more answers.

        Raises:
            ApiError: 429; or 400 where it is more than the server ever takes.
        """
        if self._answers + count > self._admission.max_answers:
            raise bad_request(f"At most {self._admission.max_answers} answers are computed at once.", "n", "too_many_answers")
        self._admission.take(count, 0)
        self._answers += count

    def hold(self, size: int, param: str | None = None) -> None:
        """Take memory.

        Args:
            size: bytes.
            param: the field that needs it.

        Raises:
            ApiError: 429; or 413 where it is more than the server ever holds.
        """
        if size > self._admission.max_bytes:
            raise ApiError(
                413, f"The request needs {size:,} bytes; at most {self._admission.max_bytes:,} are held.", param=param, code="too_large"
            )
        self._admission.take(0, size)
        self._bytes += size

    def let_go(self, size: int) -> None:
        """Give back some of the memory."""
        self._admission.give_back(0, size)
        self._bytes -= size

    def release(self) -> None:
        """Give back everything; a second time does nothing."""
        answers, held, self._answers, self._bytes = self._answers, self._bytes, 0, 0
        self._admission.give_back(answers, held)
