"""Names meant by their ends, as PEFT's target lists and patterns mean them.

Exercise it: ``pytest tests/ms4_train/adapters/test_ends.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

Value = TypeVar("Value")


def is_end(end: str, name: str) -> bool:
    """Whether ``end`` is ``name`` or its end, cut at a dot: PEFT's rule for targets and patterns."""
    return name == end or name.endswith(f".{end}")


def is_bare_end(end: str, name: str) -> bool:
    """Whether ``name`` ends in ``end``, wherever that cuts: PEFT's rule for ``modules_to_save``."""
    return name.endswith(end)


def matched(ends: Iterable[str], names: Iterable[str], rule: Callable[[str, str], bool] = is_end) -> set[str]:
    """The names that any of the ends means."""
    ends = list(ends)
    return {name for name in names if any(rule(end, name) for end in ends)}


def shortest_targets(chosen: Iterable[str], known: Sequence[str], rule: Callable[[str, str], bool] = is_end) -> list[str]:
    """The shortest ends of names that mean exactly ``chosen`` among ``known``."""
    chosen = list(chosen)
    wanted = set(chosen)
    others = [name for name in known if name not in wanted]
    targets: list[str] = []
    for name in chosen:
        words = name.split(".")
        ends = [".".join(words[-count:]) for count in range(1, len(words) + 1)]
        end = next((end for end in ends if not any(rule(end, other) for other in others)), name)
        if end not in targets:
            targets.append(end)
    return targets


def by_end(pattern: Mapping[str, Value], name: str, default: Value) -> Value:
    """The value of the first end of ``pattern`` that means ``name``, else ``default``."""
    return next((value for end, value in pattern.items() if is_end(end, name)), default)


def pattern_for(asked: Mapping[str, Value], values: Mapping[str, Value], default: Value) -> dict[str, Value]:
    """A pattern that gives every name its value whatever the order of its entries.

    Args:
        asked: kept where it does, without ends that mean none of the names; else the shortest ends that do are taken.
        values: name -> value.
        default: of names that no end means.
    """
    useful = {end: value for end, value in asked.items() if matched([end], values)}
    for name, value in values.items():
        found = {other for end, other in useful.items() if is_end(end, name)} or {default}
        if found != {value}:
            grouped = {one: [name for name, other in values.items() if other == one] for one in dict.fromkeys(values.values())}
            return {end: one for one, names in grouped.items() if one != default for end in shortest_targets(names, list(values))}
    return useful
