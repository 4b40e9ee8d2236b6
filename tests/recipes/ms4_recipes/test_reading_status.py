"""The status line shows on a terminal only, and paths are shown as they are."""

import io

from rich.console import Console

from ms4_recipes.reading_status import reading_shown


def shown(*, terminal):
    output = io.StringIO()
    with reading_shown(Console(file=output, force_terminal=terminal, width=80)) as progress:
        progress("rows[1].jsonl", 12_000)
    return output.getvalue()


def test_a_terminal_sees_the_source_and_the_rows():
    assert "reading rows: rows[1].jsonl, 12,000 so far" in shown(terminal=True)


def test_a_file_sees_nothing():
    assert shown(terminal=False).strip() == ""
