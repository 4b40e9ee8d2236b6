"""Conversions in forked processes that are really killed, and that go on: ``python -m support.conversion_kills FOLDER``.

torch is imported once; every conversion is a fork. What happened is printed as one JSON object, which
``tests/ms4_train/weights/convert/test_run_kills.py`` looks at.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support import layouts
from support.conversion import file_sums
from support.forks import fork, wait

from ms4_train.weights.convert import convert, encode, journal, run, workplace


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(owner: Any, name: str, number: int, *, after: bool = False) -> Callable[[], None]:
    """Die before (or after) a function runs for the ``number``-th time."""

    def prepare() -> None:
        original = getattr(owner, name)
        calls = 0

        def dying(*arguments: Any, **keys: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number and not after:
                die()
            result = original(*arguments, **keys)
            if calls == number:
                die()
            return result

        setattr(owner, name, dying)

    return prepare


def in_half_an_item() -> None:
    original = encode.copy_range
    calls = 0

    def half(source: int, start: int, stop: int, target: int, offset: int, **keys: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 70:
            original(source, start, (start + stop) // 2, target, offset, **keys)
            die()
        original(source, start, stop, target, offset, **keys)

    encode.copy_range = half


def in_half_a_line() -> None:
    original = journal._append
    calls = 0

    def half(path: Path, content: Any, flags: int = 0) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            with path.open("ab") as handle:
                handle.write(json.dumps(content).encode()[:17])
            die()
        original(path, content, flags)

    journal._append = half


SCENARIOS: dict[str, Callable[[], None]] = {
    "before the files": at_call(workplace, "create", 1),
    "before the journal": at_call(workplace, "start_journal", 1),
    "before the first item": at_call(encode.Encoder, "run", 1),
    "before a flush": at_call(journal, "flush", 4),
    "before a line": at_call(journal, "_append", 5),
    "in half a line": in_half_a_line,
    "after a line": at_call(journal, "_append", 8, after=True),
    "in half an item": in_half_an_item,
    "before the last item": at_call(encode.Encoder, "run", 100),
    "before the sums": at_call(run, "write_sums", 1),
    "before the rename": at_call(workplace.Workplace, "commit", 1),
    "after the rename": at_call(workplace.shutil, "rmtree", 1),
}


def in_fork(source: Path, out: Path, result: Path, prepare: Callable[[], None] = lambda: None, **options: Any) -> int:
    def work() -> None:
        journal.BATCH_ITEMS = 8
        prepare()
        report = convert(source, out, progress=None, threads=2, **{"to": "native", "max_shard_bytes": 150_000, **options})
        result.write_text(json.dumps({"written": report.items_written, "items": report.items, "restarted": report.restarted}))

    result.unlink(missing_ok=True)
    return wait(fork(work))


def outcome(result: Path) -> dict[str, Any] | None:
    return json.loads(result.read_text()) if result.exists() else None


def kill_and_resume(root: Path, prepare: Callable[[], None], **again: Any) -> dict[str, Any]:
    """Kill a conversion, look at what is left, run it again (with other arguments if given), and look at the result."""
    source, out, result = root / "source", root / "out", root / "result.json"
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(root / ".out.converting", ignore_errors=True)
    before = file_sums(source)
    code = in_fork(source, out, result, prepare)
    left = out.exists()
    resumed = in_fork(source, out, result, **again)
    return {
        "killed": code,
        "target was there": left,
        "source whole": file_sums(source) == before,
        "resumed": resumed,
        "outcome": outcome(result),
        "sums": file_sums(out),
        "beside": sorted(path.name for path in root.iterdir()),
    }


def forged(root: Path) -> dict[str, Any]:
    """A journal that names items which were never written: what would happen if a line came before its data."""
    source, out, result = root / "source", root / "out", root / "result.json"
    shutil.rmtree(out, ignore_errors=True)
    in_fork(source, out, result, at_call(encode.Encoder, "run", 1))
    journal._append(root / ".out.converting" / "journal.jsonl", {"items": [3, 4, 5], "saturated": {}})
    code = in_fork(source, out, result)
    return {"resumed": code, "outcome": outcome(result), "sums": file_sums(out)}


def changed_source(root: Path) -> dict[str, Any]:
    """The source's files are replaced by others between the kill and the second run."""

    def touch() -> None:
        for path in (root / "source").glob("*.safetensors"):
            os.utime(path, ns=(1, 1))

    shutil.rmtree(root / "out", ignore_errors=True)
    in_fork(root / "source", root / "out", root / "result.json", SCENARIOS["after a line"])
    touch()
    code = in_fork(root / "source", root / "out", root / "result.json")
    return {"resumed": code, "outcome": outcome(root / "result.json"), "sums": file_sums(root / "out")}


def interrupted(root: Path) -> dict[str, Any]:
    """Ctrl-C in the middle, then the same command."""

    def prepare() -> None:
        at = encode.Encoder.run
        calls = 0

        def interrupting(self: Any, item: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 40:
                os.kill(os.getpid(), signal.SIGINT)
            if calls >= 40:
                time.sleep(0.1)  # or these small items would be done before the main thread wakes
            return at(self, item)

        encode.Encoder.run = interrupting
        signal.signal(signal.SIGINT, signal.default_int_handler)

    return kill_and_resume(root, prepare)


def main(root: Path) -> None:
    layouts.hf_folder(root / "source", tokenizer=True)
    straight = in_fork(root / "source", root / "straight", root / "result.json")
    results: dict[str, Any] = {"straight": straight, "outcome": outcome(root / "result.json"), "sums": file_sums(root / "straight")}
    results["kills"] = {name: kill_and_resume(root, prepare) for name, prepare in SCENARIOS.items()}
    results["other arguments"] = kill_and_resume(root, SCENARIOS["after a line"], dtype="float32")
    results["not resumed"] = kill_and_resume(root, SCENARIOS["after a line"], resume=False)
    results["interrupted"] = interrupted(root)
    results["forged"] = forged(root)
    results["changed source"] = changed_source(root)
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
