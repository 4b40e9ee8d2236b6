"""Evaluations of a real model in forked processes that are really killed, and that go on: ``python -m support.eval_kills FOLDER``.

torch is imported once; every evaluation is a fork, so a kill costs a second and not ten. What happened is printed as one JSON object, which
``tests/recipes/ms4_recipes/test_evaluate_resume.py`` looks at.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.eval_files import eval_run, write_model
from support.forks import fork, wait

from ms4_evals.store.results import ResultStore
from ms4_recipes import evaluate


def die_at(name: str, call: int) -> Callable[[], None]:
    """Die when a method of the store has run so many times; ``_insert_grade`` runs before its transaction is committed."""

    def prepare() -> None:
        original = getattr(ResultStore, name)
        calls = 0

        def dying(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            result = original(*arguments)
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(ResultStore, name, dying)

    return prepare


def rows(store: Path) -> list[list[Any]]:
    """Every committed sample with what would change if it were drawn again."""
    connection = sqlite3.connect(store)
    try:
        return [
            list(row) for row in connection.execute("SELECT sample_id, problem_id, mode, sample_index, seconds FROM samples ORDER BY 1")
        ]
    except sqlite3.OperationalError:
        return []
    finally:
        connection.close()


def kill_when(process: int, store: Path, samples: int) -> int:
    """Kill the process from outside as soon as the store holds so many samples."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (store.exists() and len(rows(store)) >= samples):
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    return wait(process)


def main(folder: Path) -> dict[str, Any]:
    """Kill one evaluation four times, let it end, and compare with one that nobody disturbed."""
    model = write_model(folder / "model")
    store = folder / "killed.sqlite"
    run = eval_run(model, store)
    seen: list[dict[str, Any]] = []

    def slow_run() -> None:
        add = ResultStore.add
        ResultStore.add = lambda *arguments: (add(*arguments), time.sleep(0.1))[0]  # so that the kill comes in time on a busy machine
        evaluate.run(run)

    def attempt(name: str, code: int, before: list[list[Any]]) -> None:
        after = rows(store)
        seen.append({"name": name, "code": code, "held": len(before), "holds": len(after), "kept": after[: len(before)] == before})

    for name, prepare in {"in the third sample": die_at("_insert_grade", 3), "after the first opinions": die_at("set_opinions", 1)}.items():
        before = rows(store)
        if name == "after the first opinions":
            attempt("from outside", kill_when(fork(slow_run), store, len(before) + 4), before)
            before = rows(store)

        def doomed(prepare: Callable[[], None] = prepare) -> None:
            prepare()
            evaluate.run(run)

        attempt(name, wait(fork(doomed)), before)
    before = rows(store)
    attempt("to the end", wait(fork(lambda: evaluate.run(run))), before)
    before = rows(store)
    attempt("once more", wait(fork(lambda: evaluate.run(run))), before)
    straight = eval_run(model, folder / "straight.sqlite")
    code = wait(fork(lambda: evaluate.run(straight)))
    return {"attempts": seen, "straight": code, "straight_rows": len(rows(folder / "straight.sqlite"))}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
