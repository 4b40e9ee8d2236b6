"""How long to wait before a request is sent again.

Exercise it: ``pytest tests/evals/ms4_evals/clients/endpoint/test_retries.py``.
"""

from __future__ import annotations

import datetime
import random
import re
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

LONGEST_RETRY_AFTER = 120.0
"""Seconds of ``Retry-After`` that are believed at most: a server that says a day is asked again after two minutes, and the attempts, which
are counted, decide."""

_SECONDS = re.compile(r"\d{1,300}(\.\d{1,300})?", re.ASCII)


def retry_after_seconds(value: str | None, now: datetime.datetime | None = None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for: seconds or an HTTP date; None for anything else.

    Args:
        value: of the header.
        now: with its zone; default: the clock.
    """
    if value is None:
        return None
    value = value.strip()
    if _SECONDS.fullmatch(value):
        return min(float(value), LONGEST_RETRY_AFTER)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    try:
        wait = (moment - (now or datetime.datetime.now(datetime.UTC))).total_seconds()
    except OverflowError:
        return None
    return min(max(wait, 0.0), LONGEST_RETRY_AFTER)


@dataclass
class Backoff:
    """Waits that double from failure to failure, each shortened by chance, so that requests that failed together do not return together.

    Attributes:
        first: seconds after the first failure.
        longest: seconds at most, for a server that has too much to do; a quarter of it for other failures, since a server that is down
            altogether is left alone by its circuit.
    """

    first: float = 0.5
    longest: float = 30.0
    chance: random.Random = field(default_factory=random.Random)

    def seconds(self, failures: int, retry_after: float | None = None, *, is_push_back: bool = True) -> float:
        """Seconds after so many failures (1 or more); never less than the server asked for."""
        longest = self.longest if is_push_back else self.longest / 4
        wait = min(self.first * 2.0 ** min(failures - 1, 60), longest) * self.chance.uniform(0.5, 1.0)
        if retry_after is None:
            return wait
        return max(wait, retry_after * self.chance.uniform(1.0, 1.1))
