"""Plants a bug in a module for the length of a test, to see that the tests catch it.

A planted bug is one fragment of a source file replaced by another. The fragment must occur exactly once, so that a test whose kernel has
changed under it fails, rather than going on to plant nothing.
"""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import sys
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

_NUMBERS = itertools.count()


class StaleMutation(AssertionError):
    """The fragment to replace is not there, or more than once."""


def plant(
    monkeypatch: pytest.MonkeyPatch, folder: Path, module: ModuleType, old: str, new: str, package: str = "ms4_kernels"
) -> ModuleType:
    """Rebuild a module with a fragment replaced, and put its functions and kernels in the place of the originals everywhere.

    The changed source is written to a file, because Triton reads a kernel's source by :mod:`inspect`.

    Args:
        monkeypatch: undoes the replacement at the end of the test.
        folder: where the changed source goes.
        module: the one to change; it stays as it is but for the names that are put in place.
        old: occurs exactly once in the module's source.
        new: what comes in its place.

    Returns:
        The rebuilt module.

    Raises:
        StaleMutation: the fragment does not occur exactly once.
    """
    source = inspect.getsource(module)
    count = source.count(old)
    if count != 1:
        raise StaleMutation(f"{old!r} occurs {count} times in {module.__name__}, expected once")
    if old == new:
        raise StaleMutation(f"{old!r} replaced by itself")
    name = f"_planted_{next(_NUMBERS)}"
    path = folder / f"{name}.py"
    path.write_text(source.replace(old, new), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    rebuilt = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, rebuilt)
    spec.loader.exec_module(rebuilt)
    for attribute, value in _own_functions(rebuilt).items():
        _replace(monkeypatch, getattr(module, attribute), value)
    return rebuilt


def _own_functions(module: ModuleType) -> dict[str, Any]:
    """Functions and Triton kernels that the module itself defines."""
    found = {}
    for name, value in vars(module).items():
        function = value if isinstance(value, FunctionType) else getattr(value, "fn", None)  # a JITFunction keeps its function in `fn`
        if isinstance(function, FunctionType) and function.__module__ == module.__name__:
            found[name] = value
    return found


def _replace(monkeypatch: pytest.MonkeyPatch, old: Any, new: Any) -> None:
    """Wherever a loaded module of ``ms4_kernels`` has a name for the old object, let it name the new one."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "ms4_kernels" or name.startswith("_planted_"):
            for attribute, value in list(vars(module).items()):
                if value is old:
                    monkeypatch.setattr(module, attribute, new)
