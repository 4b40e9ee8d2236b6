"""Generated chains of modular arithmetic: training rows for a tiny model, and held-out problems with integer answers.

A problem is a chain such as ``7*3+8-5*9+2-4`` worked strictly from left to right modulo 10. The thinking of a training row is the
chain with its running values (``7*3=1 1+8=9 9-5=4 ...``), so a small model that thinks can solve what it cannot guess in one token.
Every *kind* asks for the same skill in another dress; a model trained on one kind fails on the others until it is tuned on them.

Training and held-out problems are disjoint by construction: the split is read off a hash of the plain chain, which is the same for
every kind, so a held-out chain never occurs in training under any kind and any seed.

Exercise it: ``pytest tests/evals/ms4_evals/tasks/test_arithmetic.py``, or ``ms4 data arithmetic --kind letters --rows 5 --seed 0 OUT``.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ms4_train.errors import EvaluationError
from ms4_train.storage import atomic_write_text, storage_errors

Split = Literal["train", "heldout"]

DEFAULT_STEPS = 6
HELDOUT_ONE_IN = 10
_OPERATORS = "+-*"


@dataclass(frozen=True)
class Kind:
    """One dress of the same skill.

    Attributes:
        name: what configurations call it.
        description: one sentence for ``ms4 eval tasks``.
        modulus: every step is reduced by it.
        operands: the ten symbols that stand for 0 to 9 in the question.
        operators: the symbols that stand for ``+``, ``-`` and ``*`` in the question. Capital operators between small operands keep the
            tokenizer from joining symbols, so every symbol is one token in every kind.
        leftmost_first: False reads the chain backwards before working it.
        suffix: what the question says after the chain.
    """

    name: str
    description: str
    modulus: int
    suffix: str
    operands: str = "0123456789"
    operators: str = _OPERATORS
    leftmost_first: bool = True


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("digits", "7*3+8-5, left to right modulo 10", 10, " mod 10, left to right"),
        Kind(
            "letters",
            "the same chain spelled hXdPiMf: a to j are 0 to 9, P M X are plus, minus, times",
            10,
            " mod 10, left to right, a is 0",
            operands="abcdefghij",
            operators="PMX",
        ),
        Kind("modulus7", "7*3+8-5, left to right modulo 7", 7, " mod 7, left to right"),
        Kind("backwards", "7*3+8-5 modulo 10, read from its end: 5-8+3*7", 10, " mod 10, read backwards", leftmost_first=False),
    )
}


@dataclass(frozen=True)
class Problem:
    """A question with its worked thinking and its integer answer."""

    question: str
    thinking: str
    answer: int


def find_kind(name: str) -> Kind:
    """The kind of that name.

    Raises:
        EvaluationError: no kind has that name.
    """
    if name not in KINDS:
        raise EvaluationError(f"there is no kind of arithmetic named '{name}'.", key="kind", fix=f"use one of {', '.join(KINDS)}.")
    return KINDS[name]


def split_of(chain: str) -> Split:
    """The split a plain chain such as ``7*3+8`` belongs to, read off its SHA-256: one in ten is held out."""
    digest = hashlib.sha256(chain.encode("ascii")).digest()
    return "heldout" if int.from_bytes(digest[:8], "big") % HELDOUT_ONE_IN == 0 else "train"


def work_out(kind: Kind, chain: str) -> Problem:
    """The problem that ``kind`` makes of a plain chain of one-digit operands and operators, e.g. ``7*3+8``."""
    question = "".join(_spell(kind, symbol) for symbol in chain) + kind.suffix
    ordered = chain if kind.leftmost_first else chain[::-1]
    value = int(ordered[0])
    steps: list[str] = []
    for operator, digit in zip(ordered[1::2], ordered[2::2], strict=True):
        operand = int(digit)
        result = {"+": value + operand, "-": value - operand, "*": value * operand}[operator] % kind.modulus
        steps.append(f"{value}{operator}{operand}={result}")
        value = result
    return Problem(question, " ".join(steps), value)


def make_problems(kind: str, count: int, seed: int, split: Split = "train", *, steps: int = DEFAULT_STEPS) -> list[Problem]:
    """``count`` distinct problems of one kind and split; the same arguments give the same problems on every machine.

    Args:
        kind: name of a kind in ``KINDS``.
        count: how many problems.
        seed: another seed draws other problems of the same split.
        split: ``train`` and ``heldout`` never share a chain, whatever the kinds and seeds.
        steps: operators per chain.

    Raises:
        EvaluationError: no such kind, or fewer than ``count`` distinct chains could be drawn.
    """
    spec = find_kind(kind)
    if steps < 1:
        raise EvaluationError("a chain has at least one step.", key="steps", fix="use steps of 1 or more.")
    return [work_out(spec, chain) for chain in _distinct_chains(count, seed, split, steps)]


def write_training_rows(
    kind: str, count: int, seed: int, path: str | Path, *, steps: int = DEFAULT_STEPS, direct_share: float = 0.5
) -> Path:
    r"""Write ``count`` chat rows, one problem each, as JSON lines.

    A share of ``direct_share`` of the rows has ``reasoning_effort`` ``none`` and answers at once with ``\boxed{N}``; the others have
    ``high`` and think before the same answer. The two are spread evenly through the file.

    Raises:
        EvaluationError: as ``make_problems``, or a share outside [0, 1].
        StorageError: the file cannot be written.
    """
    if not 0 <= direct_share <= 1:
        raise EvaluationError("direct_share is a share between 0 and 1.", key="direct_share", fix="use 0.5 for an even mixture.")
    lines: list[str] = []
    for index, problem in enumerate(make_problems(kind, count, seed, "train", steps=steps)):
        direct = int((index + 1) * direct_share) > int(index * direct_share)
        lines.append(json.dumps(_chat_row(problem, direct), ensure_ascii=False))
    path = Path(path)
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, "".join(line + "\n" for line in lines))
    return path


def _spell(kind: Kind, symbol: str) -> str:
    return kind.operands[int(symbol)] if symbol.isdigit() else kind.operators[_OPERATORS.index(symbol)]


def _distinct_chains(count: int, seed: int, split: Split, steps: int) -> Iterator[str]:
    source = random.Random(f"arithmetic/{steps}/{split}/{seed}")
    seen: set[str] = set()
    attempts = 100 * count + 1000
    while len(seen) < count:
        attempts -= 1
        if attempts < 0:
            raise EvaluationError(
                f"fewer than {count} distinct {split} chains of {steps} steps could be drawn.",
                key="count",
                fix="ask for fewer problems or for more steps.",
            )
        chain = _random_chain(source, steps)
        if chain not in seen and split_of(chain) == split:
            seen.add(chain)
            yield chain


def _random_chain(source: random.Random, steps: int) -> str:
    """A chain without ``*0`` in it, which would let a reader skip everything on its other side."""
    symbols = [str(source.randrange(10))]
    for _ in range(steps):
        operator = _OPERATORS[source.randrange(3)]
        symbols += [operator, str(source.randrange(1, 10) if operator == "*" else source.randrange(10))]
    return "".join(symbols)


def _chat_row(problem: Problem, direct: bool) -> dict[str, object]:
    answer = f"\\boxed{{{problem.answer}}}"
    content: object = answer
    if not direct:
        content = [{"type": "thinking", "thinking": problem.thinking}, {"type": "text", "text": answer}]
    messages = [{"role": "user", "content": problem.question}, {"role": "assistant", "content": content}]
    return {"messages": messages, "reasoning_effort": "none" if direct else "high"}
