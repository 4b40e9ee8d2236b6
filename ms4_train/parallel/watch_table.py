"""What is known of every rank, and the verdict on those that died, hang or ended with an error. Knows nothing of sockets.

Exercise it: ``pytest tests/ms4_train/parallel/test_watch_table.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ms4_train.errors import RankLostError
from ms4_train.parallel.progress import Place

SILENT_SECONDS = 3.0
"""A rank that sends nothing for so long is named as the one that hangs, when the run does."""

_GO_ON = "with training.resume_from_checkpoint=auto the same command goes on from the last checkpoint"
_DIED = f"look at the end of that rank's output and at the machine's log (out of memory?); {_GO_ON}."
_HANGS = f"look at that rank's machine, or raise parallel.timeout_seconds if the work may take longer; {_GO_ON}."


@dataclass(frozen=True)
class Verdict:
    """Why the run ends.

    Attributes:
        message: with the rank's name.
        fix: what to do about it.
        is_own_error: a rank ended with an error of its own, which others may be about to raise too.
        exit_code: of the other ranks. That of the error where it is one that a user can mend: a scheduler that sees several codes must not
            take it for a loss, after which starting again helps.
    """

    message: str
    fix: str | None = None
    is_own_error: bool = False
    exit_code: int = RankLostError.exit_code

    def error(self) -> RankLostError:
        """As what every other rank raises."""
        error = RankLostError(self.message, fix=self.fix)
        error.exit_code = self.exit_code
        return error


def exit_code_of(message: dict[str, Any]) -> int:
    """The code that a message of another rank asks this one to end with; that of a loss where it has none that could be one."""
    code = message.get("exit_code")
    return code if isinstance(code, int) and not isinstance(code, bool) and 0 < code < 256 else RankLostError.exit_code


@dataclass
class RankState:
    """What is known of one rank.

    Attributes:
        name: for messages.
        seen: when its last message came.
        place: where it is.
        first: phases that it had entered when its step began.
        line: where its main thread stands in the code; "" before it said so.
        waits: whether it waits there for other ranks.
        has_left: whether it said goodbye.
    """

    name: str
    seen: float
    place: Place = field(default_factory=lambda: Place("start", 0, 0))
    first: int = 0
    line: str = ""
    waits: bool = False
    has_left: bool = False

    def move(self, place: Place, first: int) -> bool:
        """Set the place; whether that is progress."""
        if place.count <= self.place.count:
            return False
        self.place, self.first = place, first
        return True

    @property
    def reached(self) -> tuple[int, int]:
        """How far it is: ranks enter the same phases in a step, but not on the way to the first one."""
        return self.place.step, self.place.count - self.first if self.place.step else 0


class Table:
    """All ranks. Times are seconds of one clock, whichever.

    Args:
        names: of the ranks, in their order.
        timeout: without progress of any rank for so long, or without a message of one rank, the run hangs.
        now: the time.
    """

    def __init__(self, names: list[str], timeout: float, now: float) -> None:
        self.ranks = [RankState(name, now) for name in names]
        self._timeout = timeout
        self._progress = now

    def heard(self, rank: int, now: float) -> None:
        """A message came from a rank."""
        self.ranks[rank].seen = now

    def moved(self, rank: int, place: Place, first: int, now: float) -> None:
        """A rank is at a place, in a step that began with its phase number ``first``."""
        if self.ranks[rank].move(place, first):
            self._progress = now

    def stands(self, rank: int, line: str, waits: bool) -> None:
        """Where a rank's main thread stands in the code, and whether it waits for others."""
        self.ranks[rank].line, self.ranks[rank].waits = line, waits

    def left(self, rank: int, now: float) -> None:
        """A rank said goodbye without an error. Those that are left may be close behind: their time begins anew."""
        self.ranks[rank].has_left = True
        self._progress = now

    @property
    def are_alone(self) -> bool:
        """Whether every rank but the first one has left."""
        return all(state.has_left for state in self.ranks[1:])

    def ended(self, rank: int) -> Verdict | None:
        """The connection to a rank is closed; None where it had said goodbye."""
        state = self.ranks[rank]
        return None if state.has_left else Verdict(f"{state.name} ended in {state.place}.", _DIED)

    def failed(self, rank: int, message: str, exit_code: int = RankLostError.exit_code) -> Verdict:
        """A rank ended with an error of its own."""
        return Verdict(f"rank {rank} ended with an error: {message}", is_own_error=True, exit_code=exit_code)

    def silent(self, rank: int, now: float) -> Verdict | None:
        """The verdict on a rank without a message for as long as the timeout; None where it has left."""
        state = self.ranks[rank]
        return _silent(state, now) if not state.has_left and now - state.seen >= self._timeout else None

    def judge(self, now: float) -> Verdict | None:
        """The verdict on ranks that hang; None where none does."""
        present = [state for state in self.ranks if not state.has_left]
        for rank in range(len(self.ranks)):
            if (verdict := self.silent(rank, now)) is not None:
                return verdict
        if not present or now - self._progress < self._timeout:
            return None
        for state in present:
            if now - state.seen >= SILENT_SECONDS:
                return _silent(state, now)
        behind = _behind(present)
        seconds = f"{now - self._progress:.0f} s"
        if behind:
            places = _joined([f"{state.name} hangs in {state.place}{_at(state)}" for state in behind])
            return Verdict(f"{places}: no rank got any further for {seconds}.", _HANGS)
        return Verdict(f"no rank got any further for {seconds}: {_places(present)}.", _HANGS)


def _behind(present: list[RankState]) -> list[RankState]:
    """Those that keep the others: the least advanced, or, where these wait themselves, those that do not. None where all are alike."""
    least = min(state.reached for state in present)
    behind = [state for state in present if state.reached == least]
    if len(behind) == len(present) or all(state.waits for state in behind):
        behind = [state for state in present if not state.waits] or behind
    return behind if len(behind) < len(present) else []


def _silent(state: RankState, now: float) -> Verdict:
    return Verdict(f"{state.name} hangs in {state.place}: it gave no sign of life for {now - state.seen:.0f} s.", _HANGS)


def _at(state: RankState) -> str:
    return f", at {state.line}" if state.line else ""


def _places(present: list[RankState]) -> str:
    places = {str(state.place) for state in present}
    if len(places) == 1:
        return f"all of them are in {places.pop()}{_at(present[0])}"
    return _joined([f"{state.name} is in {state.place}" for state in present])


def _joined(parts: list[str], most: int = 4) -> str:
    shown = ", ".join(parts[:most])
    return f"{shown} and {len(parts) - most} more" if len(parts) > most else shown
