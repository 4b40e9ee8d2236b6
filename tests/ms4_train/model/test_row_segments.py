"""Segments hold inside their context and in their thread only, and are cut to the rows that a module is given."""

from __future__ import annotations

import threading

from ms4_train.model.row_segments import RowSegment, current_segments, row_segments, segments_of

THREE = (RowSegment("a", 0, 4), RowSegment(None, 4, 5), RowSegment("b", 5, 9))


def test_contexts_nest_and_end():
    assert current_segments() is None
    with row_segments(THREE):
        with row_segments(THREE[:1]):
            assert current_segments() == THREE[:1]
        assert current_segments() == THREE
    assert current_segments() is None


def test_another_thread_sees_nothing():
    seen: list[object] = []
    with row_segments(THREE):
        thread = threading.Thread(target=lambda: seen.append(current_segments()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_a_part_of_the_rows_counts_from_zero():
    with row_segments(THREE):
        with segments_of(0, 4):
            assert current_segments() == (RowSegment("a", 0, 4),)
        with segments_of(2, 7):
            assert current_segments() == (RowSegment("a", 0, 2), RowSegment(None, 2, 3), RowSegment("b", 3, 5))
        with segments_of(9, 9):
            assert current_segments() == ()
        assert current_segments() == THREE
    with segments_of(2, 7):
        assert current_segments() is None
