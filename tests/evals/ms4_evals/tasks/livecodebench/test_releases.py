"""Releases and windows, against the published sizes and the contest days of the recorded data."""

from datetime import date

import pytest
from support.code_rows import FILE_SIZES, published_prompts, submissions

from ms4_evals.tasks.livecodebench.releases import FILES, WINDOWS, release_files, release_size, window_of


def test_releases_are_cumulative_and_of_the_published_sizes():
    assert [release_size(f"v{number}") for number in range(1, 7)] == [400, 511, 612, 713, 880, 1055]
    assert [file.name for file in release_files("v3")] == ["test.jsonl", "test2.jsonl", "test3.jsonl"]
    assert sum(file.size for file in FILES) == 4_485_994_821, "as the hub's listing of the download says"
    assert all(len(bytes.fromhex(file.sha256)) == 32 for file in FILES)
    assert {file.name: file.problems for file in FILES} == FILE_SIZES


@pytest.mark.data
def test_windows_hold_the_published_numbers_of_release_v5(data_folder):
    """The 880 recorded submissions are release v5; their contest days give 315 and 279, as published, and 166 for 2410-2502."""
    days = {name: date.fromisoformat(row["contest_date"][:10]) for name, row in submissions(data_folder).items()}
    assert len(days) == release_size("v5")
    for name in ("aa", "v5"):
        assert sum(map(WINDOWS[name].holds, days.values())) == WINDOWS[name].problems
    october = window_of(None, "2024-10-01", "2025-02-01")
    assert october is not None
    assert sum(map(october.holds, days.values())) == 166
    assert {name for name, day in days.items() if WINDOWS["v5"].holds(day)} == set(published_prompts(data_folder))
    # v6 is these and the 175 problems of its own file.
    assert WINDOWS["v6"].problems == 279 + FILES[5].problems
    assert sum(map(WINDOWS["v6"].holds, days.values())) == 279


@pytest.mark.data
def test_the_end_day_counts_whole(data_folder):
    """LiveCodeBench compares times, so a contest at 18:30 of the last day is outside; here days are compared."""
    last = [row for row in submissions(data_folder).values() if row["contest_date"].startswith("2025-01-04T")]
    assert {row["contest_date"] for row in last} >= {"2025-01-04T18:30:00"}
    window = window_of(None, None, "2025-01-04")
    assert window is not None
    assert all(window.holds(date.fromisoformat(row["contest_date"][:10])) for row in last)


def test_windows_of_dates():
    assert window_of(None, None, None) is None
    assert window_of("aa", None, None) is WINDOWS["aa"]
    window = window_of(None, "2024-08-01", None)
    assert window is not None
    assert (window.name, window.problems) == ("2024-08-01_end", None)
    assert [window.holds(date(2024, month, 1)) for month in (7, 8, 9)] == [False, True, True]
    assert not WINDOWS["aa"].holds(date(2025, 1, 1))
    assert WINDOWS["aa"].holds(date(2024, 12, 31))
