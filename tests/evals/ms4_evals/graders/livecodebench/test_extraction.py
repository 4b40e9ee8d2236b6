"""Code out of answers: LiveCodeBench's pairing of lines, and CommonMark's fences.

What LiveCodeBench's own function returns was written down by running it (``extract_code`` of the package nvidia-livecodebench 26.3, which
leaves the branch for chat models as it is upstream); the strict column is CommonMark 0.31, section 4.5, read by hand.
"""

from __future__ import annotations

import pytest

from ms4_evals.graders.livecodebench.extraction import Extraction, extract_code, extract_code_strict

T = "```"

# name, answer, official, strict code, strict is closed
CASES = [
    ("one block", f"Here:\n{T}python\nprint(1)\n{T}\nDone.", "print(1)", "print(1)", True),
    ("no block", "print(1)", "", "", True),
    ("empty", "", "", "", True),
    ("two blocks: the last", f"{T}python\na\n{T}\ntext\n{T}python\nb\n{T}", "b", "b", True),
    ("empty block", f"{T}python\n{T}", "", "", True),
    ("one fence that never closes", f"{T}python\nprint(1)\n", "", "print(1)\n", False),
    ("last fence never closes", f"{T}python\na\n{T}\ntext\n{T}python\nb", "text", "b", False),
    ("code on one line in the text", f"Use {T}x{T} here.\n{T}python\na\n{T}", "a", "a", True),
    ("backticks in the text afterwards", f"{T}python\na\n{T}\nNote: {T}x{T} is not needed.", "", "a", True),
    ("backticks inside the code", f"{T}python\nprint('{T}')\nb\n{T}", "b", f"print('{T}')\nb", True),
    ("closing fence with a space", f"{T}python\na\n{T} \n", "a", "a", True),
    ("longer fences", f"{T}``python\na\n{T}``\n", "a", "a", True),
    ("a shorter fence does not close", f"{T}`python\na\n{T}\nb\n{T}`", "b", f"a\n{T}\nb", True),
    ("indented in a list", f"1. Code:\n   {T}python\n   a\n   {T}", "   a", "   a", True),
    ("behind a list mark", f"- {T}python\n  a\n  {T}", "  a", "  a", True),
    ("carriage returns", f"{T}python\r\na\r\n{T}\r\n", "a\r", "a\r", True),
    ("forgotten closing fence before the next block", f"{T}python\na\ntext\n{T}python\nb\n{T}", "b", "b", True),
    ("tildes", "~~~python\na\n~~~", "", "", True),
    ("two backticks", "``python\na\n``", "", "", True),
    ("an output block after the code", f"{T}python\na\n{T}\nOutput:\n{T}\n3\n{T}", "3", "3", True),
]


@pytest.mark.parametrize(("answer", "official", "strict", "is_closed"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_cases(answer, official, strict, is_closed):
    assert extract_code(answer) == official
    assert extract_code_strict(answer) == Extraction(strict, is_closed)


def test_a_long_answer_of_fences_takes_no_longer_than_its_length():
    answer = "```\n" * 200_000
    assert extract_code(answer) == ""
    assert extract_code_strict(answer) == Extraction("", is_closed=True)


def test_an_opening_line_of_marks_is_read_in_one_pass():
    assert extract_code_strict("- " * 20_000 + "x") == Extraction("", is_closed=True)
