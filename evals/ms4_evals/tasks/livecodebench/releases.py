"""LiveCodeBench's releases and windows: which files, how many problems, which days.

Releases are cumulative: v3 is the first three files. A window is a range of contest days within a release, and several published numbers
are of different windows, so the two are named together everywhere. Sources: the benchmark's README (sizes of releases), NVIDIA's
configurations (``livecodebench_aa_v2`` and NeMo-Skills' splits ``test_v5_2408_2502``, ``test_v6_2408_2505``; sizes of windows), and the
tree of the data set on the hub (bytes and SHA-256 of its files).

Exercise it: ``pytest tests/evals/ms4_evals/tasks/livecodebench/test_releases.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

HUB_DATASET = "livecodebench/code_generation_lite"
HUB_REVISION = "0fe84c3912ea0c4d4a78037083943e8f0c4dd505"


@dataclass(frozen=True)
class ReleaseFile:
    """One file of the data set, as the hub has it.

    Attributes:
        name: of the file.
        problems: rows in it.
        size: in bytes.
        sha256: of its content.
    """

    name: str
    problems: int
    size: int
    sha256: str


FILES = (
    ReleaseFile("test.jsonl", 400, 1_252_609_773, "2bd02b38beb48e8c46b5b9987095d999ff38cd8efc255ea5d58974317c48f63f"),
    ReleaseFile("test2.jsonl", 111, 713_377_060, "095df7c5daf15f882c51a9deb84085cff1e073495a5dbcf95015a564d485f3a3"),
    ReleaseFile("test3.jsonl", 101, 623_360_766, "28ed26cc83363ce3f1fe2d5fad9f8393077beb1907b167a31bd3b32f80801b79"),
    ReleaseFile("test4.jsonl", 101, 1_204_644_685, "d711138ddaebfcf5f8ec6a4283ee677298c0f5c5d374a235af92aaf0584510da"),
    ReleaseFile("test5.jsonl", 167, 557_699_297, "7f77571c2a6df0c2a72a3277650309f67e01e0008e18117e624633df53f81214"),
    ReleaseFile("test6.jsonl", 175, 134_303_240, "bb4c364f71921c4495a6ad15abe1a927350b720009f4933e2e71f8af0f6fd1f5"),
)


@dataclass(frozen=True)
class Window:
    """A range of contest days, both included.

    Attributes:
        name: for titles and names of tasks.
        first: None for no bound.
        last: None for no bound.
        problems: how many the published window has; None where none is published.
    """

    name: str
    first: date | None
    last: date | None
    problems: int | None = None

    def holds(self, day: date) -> bool:
        """Whether a contest of that day is in the window."""
        return (self.first is None or self.first <= day) and (self.last is None or day <= self.last)


WINDOWS = {
    # "2024-07-01 to 2025-01-01" is printed, but no contest of the first day of 2025 is in the data.
    "aa": Window("aa", date(2024, 7, 1), date(2024, 12, 31), 315),
    "v5": Window("2408-2502", date(2024, 8, 1), date(2025, 2, 1), 279),
    "v6": Window("2408-2505", date(2024, 8, 1), date(2025, 5, 1), 454),
}


def release_files(release: str) -> tuple[ReleaseFile, ...]:
    """The files of a cumulative release, ``v1`` to ``v6``."""
    return FILES[: int(release.removeprefix("v"))]


def release_size(release: str) -> int:
    """How many problems a cumulative release has."""
    return sum(file.problems for file in release_files(release))


def window_of(window: str | None, start_date: str | None, end_date: str | None) -> Window | None:
    """The window that a configuration names or describes; None for all days."""
    if window is not None:
        return WINDOWS[window]
    if start_date is None and end_date is None:
        return None
    first = date.fromisoformat(start_date) if start_date else None
    last = date.fromisoformat(end_date) if end_date else None
    return Window(f"{start_date or 'start'}_{end_date or 'end'}", first, last)
