"""The run file reads back to the run, comments and all; the report keeps outside text on its line."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ms4_train.config.importing.draft import Draft
from ms4_train.config.importing.report import commented_yaml, report
from ms4_train.config.nodes import Document, to_document
from ms4_train.untrusted import parse_yaml

LONG = "A sentence that is far longer than one line of a file should be, so that it is cut between words and goes on below. " * 2
KEYS = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.floats(allow_nan=False, allow_infinity=False))
RUNS = st.dictionaries(
    KEYS, st.one_of(VALUES, st.dictionaries(KEYS, VALUES, max_size=3), st.lists(VALUES, max_size=3)), min_size=1, max_size=4
)


@given(RUNS)
def test_the_file_reads_back_with_comments_everywhere(run):
    draft = Draft(Document({}), run=run)
    draft.comment((), "heading", LONG)
    for key, value in run.items():
        draft.comment((key,), LONG)
        for inner in value if isinstance(value, dict) else ():
            draft.comment((key, inner), "  preset: all")
    text = commented_yaml(draft)
    assert to_document(parse_yaml(text)).values == run
    assert all(len(line) <= 110 for line in text.splitlines() if line.lstrip().startswith("#"))


def test_report():
    draft = Draft(Document({}))
    draft.put("learning_rate", ("training", "learning_rate"), 1e-4)
    draft.drop("some\x1b[31mkey", "a reason\nwith a break")
    draft.warn(LONG)
    lines = report(draft).splitlines()
    assert lines[:4] == [
        "translated (1):",
        "  learning_rate -> training.learning_rate  0.0001",
        "dropped (1):",
        "  some [31mkey: a reason with a break",
    ]
    assert lines[4] == "warnings (1):"
    assert lines[5].startswith("  ! A sentence")
    assert " ".join(line.strip(" !") for line in lines[5:]) == LONG.strip()
