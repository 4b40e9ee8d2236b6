"""Outside text cannot steer a terminal."""

from ms4_evals.outside_text import one_line, printable


def test_control_characters_are_replaced_and_text_is_kept():
    mark = "\N{REPLACEMENT CHARACTER}"
    assert printable("a\x1b[31mb\x07\x9b1m\r") == f"a{mark}[31mb{mark}{mark}1m{mark}"
    assert printable("\N{RIGHT-TO-LEFT OVERRIDE}abc") == f"{mark}abc"
    kept = "tab\t line\n \N{GREEK SMALL LETTER PI} \U0001f40d $\\boxed{7}$"
    assert printable(kept) == kept


def test_one_line():
    assert one_line("  a\n\tb  c\x00") == "a b c\N{REPLACEMENT CHARACTER}"
