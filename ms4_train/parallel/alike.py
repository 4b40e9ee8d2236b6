"""Whether all ranks have the same values, and the refusal that says which rank has what, and on which machine.

Each rank reads its own command line and its own disk. Where these differ, sums over the ranks mix two runs without a word, or one rank
waits in a collective that the others never call; so what must be equal is compared before it is used.
Exercise it: ``pytest tests/ms4_train/parallel/test_alike.py``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ms4_train.errors import ParallelError

if TYPE_CHECKING:
    from ms4_train.parallel.mesh import Mesh

Values = Mapping[str, Any]
Compare = Callable[[Values, Values], Iterable[tuple[str, Any, Any]]]
"""(key, first value, second value) wherever two mappings differ."""

SHOWN_KEYS = 3
SHOWN_VALUES = 3
"""Of one key."""
SHOWN_RANGES = 4
"""Of ranks that have the same value."""
_SHOWN_CHARACTERS = 60
_ABSENT = "absent"


def require_alike(mesh: Mesh, own: Values, *, fix: str, compare: Compare | None = None) -> None:
    """Refuse on every rank where ranks have different values. Collective.

    Args:
        mesh: of the ranks.
        own: this rank's values, by key; anything JSON can hold.
        fix: what the user does about it.
        compare: finds the keys that differ; default: those of the mapping itself.

    Raises:
        ParallelError: names the first keys that differ, and for each value the ranks that have it and their machines.
    """
    found = differing(mesh, own, compare=compare)
    if not found:
        return
    lines = [text if not number else f"{key}: {text}" for number, (key, text) in enumerate(found.items())]
    more = len(lines) - SHOWN_KEYS
    rest = f"; {more:,} more {'differs' if more == 1 else 'differ'}" if more > 0 else ""
    error = ParallelError(f"differs between ranks: {'; '.join(lines[:SHOWN_KEYS])}{rest}.", key=next(iter(found)), fix=fix)
    error.on_all_ranks = True
    raise error


def differing(mesh: Mesh, own: Values, *, compare: Compare | None = None) -> dict[str, str]:
    """{key: which ranks have which value, in words} of all keys in which ranks differ, the same on every rank. Collective.

    Sums are compared first, so that ranks which agree tell each other little.
    """
    text = json.dumps(own, sort_keys=True)
    told = mesh.all_gather_json({"host": socket.gethostname(), "sum": hashlib.sha256(text.encode()).hexdigest()})
    if all(one["sum"] == told[0]["sum"] for one in told):
        return {}
    everyone, hosts = mesh.all_gather_json(own), [one["host"] for one in told]
    of_main: dict[str, Any] = {}
    others: dict[str, dict[int, Any]] = {}
    for rank, values in enumerate(everyone):
        for key, first, other in (compare or _flat)(everyone[0], values):
            of_main[key] = first
            others.setdefault(key, {})[rank] = other
    return {key: _spread([others[key].get(rank, first) for rank in range(len(hosts))], hosts) for key, first in of_main.items()}


def ranks_named(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """``rank 3 (host a)`` or ``ranks 0-7, 9 (hosts a, b)``.

    Args:
        ranks: some of them, in order; not empty.
        hosts: names of all ranks' machines.
    """
    # In a run of neighbours, rank and place differ by the same number.
    groups = [[rank for _, rank in group] for _, group in itertools.groupby(enumerate(ranks), key=lambda pair: pair[1] - pair[0])]
    ranges = [str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1]}" for group in groups]
    places = list(dict.fromkeys(hosts[rank] for rank in ranks))
    return f"rank{'s' * (len(ranks) > 1)} {_few(ranges)} (host{'s' * (len(places) > 1)} {_few(places)})"


def _few(names: Sequence[str]) -> str:
    return ", ".join([*names[:SHOWN_RANGES], "..."] if len(names) > SHOWN_RANGES else names)


def _flat(first: Values, second: Values) -> Iterable[tuple[str, Any, Any]]:
    for key in dict.fromkeys([*first, *second]):
        left, right = first.get(key, _ABSENT), second.get(key, _ABSENT)
        if left != right:
            yield key, left, right


def _spread(values: Sequence[Any], hosts: Sequence[str]) -> str:
    """Which ranks have which value, in words."""
    ranks_of: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks_of.setdefault(value if isinstance(value, str) else json.dumps(value), []).append(rank)
    parts = [f"{_short(text)} on {ranks_named(ranks, hosts)}" for text, ranks in ranks_of.items()]
    more = len(parts) - SHOWN_VALUES
    return ", ".join([*parts[:SHOWN_VALUES], f"{more} more values"] if more > 0 else parts)


def _short(text: str) -> str:
    """Paths and sums may differ at either end."""
    half = _SHOWN_CHARACTERS // 2
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:half]}...{text[-half:]}"
