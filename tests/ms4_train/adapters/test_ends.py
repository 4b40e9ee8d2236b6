"""Ends of names: PEFT's rules, and the shortest lists and patterns that mean exactly what is wanted."""

import re

import pytest

from ms4_train.adapters.ends import by_end, is_bare_end, is_end, matched, pattern_for, shortest_targets

NAMES = ["a.0.x", "a.1.x", "a.0.y", "b.0.y", "b.10.y"]


@pytest.mark.parametrize("end", ["x", "0.x", "a.0.x", "10.y", ".x", "y"])
def test_the_rule_is_that_of_peft(end):
    """Against PEFT's own matching of targets and of patterns."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    settings = LoraConfig(target_modules=[end])
    for name in NAMES:
        assert is_end(end, name) == bool(check_target_module_exists(settings, name))
        assert is_end(end, name) == (get_pattern_key([re.escape(end)], name) != name or end == name)


def test_shortest_targets_match_exactly():
    known = ["a.0.x", "a.1.x", "a.0.y", "b.0.y"]
    assert shortest_targets(["a.0.x", "a.1.x"], known) == ["x"]
    assert shortest_targets(["a.0.x", "a.0.y"], known) == ["0.x", "a.0.y"]
    assert shortest_targets([], known) == []


def test_bare_ends_cut_anywhere():
    names = ["model.norm", "model.q_norm"]
    assert matched(["norm"], names, is_bare_end) == set(names)
    assert matched(["norm"], names) == {"model.norm"}
    assert shortest_targets(["model.norm"], names, is_bare_end) == ["model.norm"]


def test_first_end_gives_the_value():
    assert by_end({"0.x": 1, "x": 2}, "a.0.x", 3) == 1
    assert by_end({"0.x": 1, "x": 2}, "a.1.x", 3) == 2
    assert by_end({"0.x": 1}, "a.0.y", 3) == 3


def test_pattern_is_kept_or_made_anew():
    values = {"a.0.x": 2, "a.1.x": 2, "a.0.y": 4, "b.0.y": 8}
    assert pattern_for({"x": 2, "a.0.y": 4, "z": 1}, values, 8) == {"x": 2, "a.0.y": 4}
    assert pattern_for({}, values, 8) == {"x": 2, "a.0.y": 4}
    assert pattern_for({"x": 2, "a.0.y": 4, "y": 8}, values, 8) == {"x": 2, "a.0.y": 4}  # two ends for one name depend on their order
    assert pattern_for({}, dict.fromkeys(values, 8), 8) == {}
