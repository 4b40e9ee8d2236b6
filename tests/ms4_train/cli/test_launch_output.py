"""What is shown of several ranks' lines, and how often."""

from ms4_train.cli.launch_output import HOLD_SECONDS, MAX_LINES, Lines, Merger

LATER = HOLD_SECONDS + 1
FIRST = b"Traceback (most recent call last):\n  File 'a', line 1\n    x()\nValueError: one\n"


def test_lines_are_cut_across_pieces_and_rid_of_escapes():
    lines = Lines()
    assert lines.cut(b"on") == []
    assert lines.cut(b"e\ntwo\r\n\x1b[31mred\x1b[0m\nrest") == [b"one", b"two", b"red"]
    assert lines.end() == [b"rest"]
    assert lines.end() == []


def test_a_traceback_is_one_line():
    lines = Lines()
    both = FIRST + b"before\n" + FIRST[:-5]
    found = lines.cut(b"warning: x\n" + both)
    assert found == [b"warning: x", FIRST.rstrip(b"\n"), b"before"]
    assert lines.end()[0].startswith(b"Traceback")


def test_what_rank_0_said_is_not_said_again_also_if_it_comes_later():
    merger = Merger()
    merger.hold(1, b"error: a", 0)
    merger.own(b"error: a")
    merger.hold(2, b"error: a", 0)
    assert merger.due(LATER) == []


def test_what_only_others_said_is_said_once_with_a_rank():
    merger = Merger()
    for rank in (3, 1, 2):
        merger.hold(rank, b"error: a\nb", 0)
    assert merger.due(HOLD_SECONDS / 2) == []
    assert merger.due(LATER) == [b"[rank 3] error: a\n[rank 3] b\n"]


def test_a_rank_that_repeats_itself_is_heard_as_often():
    merger = Merger()
    merger.own(b"step")
    for _ in range(3):
        merger.hold(1, b"step", 0)
    merger.hold(2, b"step", 0)
    assert merger.due(LATER) == [b"[rank 1] step\n"] * 2


def test_memory_is_bounded():
    merger = Merger()
    for number in range(3 * MAX_LINES):
        merger.own(b"%d" % number)
    assert len(merger._counts) == len(merger._shown) == MAX_LINES


def test_an_error_and_word_of_it_by_another_rank_are_one():
    merger = Merger()
    merger.own(b"error: key: wrong. Fix: x.")
    merger.hold(1, b"error: rank 0 has stopped: key: wrong. Fix: x.", 0)
    merger.own(b"error: disk full.")
    merger.hold(1, b"error: rank 0 could not save: disk full.", 0)
    merger.own(b"error: rank 2 ended with an error: other. Fix: y.")
    merger.hold(2, b"error: other. Fix: y.", 0)
    merger.hold(1, b"error: rank 2 ended with an error: third. Fix: y.", 0)
    assert merger.due(LATER) == [b"[rank 1] error: rank 2 ended with an error: third. Fix: y.\n"]
