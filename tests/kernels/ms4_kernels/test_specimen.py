"""What a specimen says is taken at its word by the report: every argument of its kernel is either typed or constant, none is both."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import ms4_kernels

pytest.importorskip("triton")

ROOMS = sorted(path.relative_to(Path(ms4_kernels.__file__).parent) for path in Path(ms4_kernels.__file__).parent.rglob("specimens.py"))


def specimens():
    for room in ROOMS:
        module = importlib.import_module(".".join(["ms4_kernels", *room.with_suffix("").parts]))
        yield from module.specimens()


def test_there_are_specimens_of_every_room_with_kernels():
    assert {room.parts[0] for room in ROOMS} == {"cross_entropy", "invariant", "latent_attention", "moe", "routing"}


def test_arguments_are_complete():
    seen = 0
    for specimen in specimens():
        seen += 1
        names = set(specimen.kernel.arg_names)
        assert names == set(specimen.arguments) | set(specimen.constants), specimen
        assert not set(specimen.arguments) & set(specimen.constants), specimen
    assert seen > 10
