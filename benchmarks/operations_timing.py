"""One comparison of an operation: outputs are found equal, then runs are timed in rounds, and memory is counted.

On a CPU a time is CPU seconds of this process, of so many calls in a row that the clock's grain does not show. On a CUDA device it is the
time between two events around one call: what the host takes to launch is in it where the device has to wait for that.
Exercise it: ``python benchmarks/operations.py --tiny``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

OURS = "ms4"
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Norm of a result's difference over its norm. fp32 sums in another order differ by some 1e-6, and GPUs may take shortcuts on either side;
bf16 keeps 8 bits, and the two sides round three or four intermediate results at different places, 0.4% at most each."""


@dataclass(frozen=True)
class Contestant:
    """One way to do the work.

    Attributes:
        run: does it once and returns its results.
        comparable: the results in the order and shapes of ours; None for bare products, which compute something else and are not checked.
    """

    run: Callable[[], Sequence[Tensor]]
    comparable: Callable[[Sequence[Tensor]], Sequence[Tensor]] | None = list


@dataclass(frozen=True)
class Comparison:
    """The same work done in several ways.

    Attributes:
        operation: the room of ``ms4_kernels`` it belongs to.
        name: says what is computed.
        tokens: units of work.
        dtype: of the inputs; decides the tolerance.
        contestants: by name; the first one is ours.
        flop: useful floating-point operations of one run; 0 where products are not what it spends its time on.
        kept_anyway: tensors that exist whether or not a backward will come: parameters. Not counted as saved.
        saved_bytes: what ours has to keep for its backward, to the byte; None where nothing is claimed.
    """

    operation: str
    name: str
    tokens: int
    dtype: torch.dtype
    contestants: dict[str, Contestant]
    flop: int = 0
    kept_anyway: Sequence[Tensor] = ()
    saved_bytes: int | None = None


@dataclass
class Result:
    """What was measured of a comparison, and nothing that holds its tensors.

    Attributes:
        names: of all contestants, ours first.
        failures: contestant -> why it was left out.
        seconds: contestant -> seconds of one call, in order; entry i of all belongs to one round, and a slow one may have fewer.
    """

    operation: str
    name: str
    tokens: int
    dtype: torch.dtype
    flop: int
    names: tuple[str, ...]
    differences: dict[str, float] = field(default_factory=dict)
    saved_bytes: dict[str, int] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def summary(self) -> dict[str, dict[str, float]]:
        """Per contestant: median seconds, tokens and FLOP per second, and its time over ours (median, least and most over rounds)."""
        rows = {}
        for name, seconds in self.seconds.items():
            median = statistics.median(seconds)
            rows[name] = {"seconds_median": median, "tokens_per_second": self.tokens / median}
            if self.flop:
                rows[name]["flop_per_second"] = self.flop / median
            ratios = [other / ours for other, ours in zip(seconds, self.seconds.get(OURS, ()), strict=False)]
            if ratios:
                rows[name] |= {"times_ours_median": statistics.median(ratios), "times_ours_min": min(ratios), "times_ours_max": max(ratios)}
        return rows


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
        device: that of all tensors.
        rounds: timed rounds.
        sample_seconds: on a CPU, least length of a sample; short calls are repeated within it.
        most_seconds: of all timed calls of one contestant of one comparison; a slow one takes part in fewer rounds, at least in one.
    """

    device: torch.device
    rounds: int
    sample_seconds: float
    most_seconds: float


def measure(comparison: Comparison, plan: Plan) -> Result:
    """Check and time. A contestant that runs out of device memory, or that refuses the call, is left out, and the result says so.

    Raises:
        SystemExit: a contestant's results differ from ours, or ours keeps another number of bytes than is claimed.
    """
    names = tuple(comparison.contestants)
    result = Result(comparison.operation, comparison.name, comparison.tokens, comparison.dtype, comparison.flop, names)
    estimates = _check(comparison, result, plan.device)
    runs = {name: comparison.contestants[name].run for name in estimates}
    calls = {name: _calls(seconds, plan) for name, seconds in estimates.items()}
    rounds = {name: _rounds(seconds * calls[name], plan) for name, seconds in estimates.items()}
    clock = _clock(plan.device)
    result.seconds = {name: [] for name in runs}
    for index in range(plan.rounds):
        names = [name for name in runs if index < rounds[name]]
        for name in names if index % 2 == 0 else reversed(names):
            result.seconds[name].append(clock(runs[name], calls[name]))
    return result


def difference(mine: Tensor, theirs: Tensor) -> float:
    """Norm of the difference over the norm of theirs, the sums in fp64; a large stack is looked at in pieces."""
    if mine.shape != theirs.shape:
        return float("inf")
    pairs = zip(mine.split(1), theirs.split(1), strict=True) if mine.numel() > 1 << 26 else [(mine, theirs)]
    square = norm = 0.0
    for left, right in pairs:
        square += float((left.double() - right.double()).square().sum())
        norm += float(right.double().square().sum())
    return (square / norm) ** 0.5 if norm else square**0.5


def _check(comparison: Comparison, result: Result, device: torch.device) -> dict[str, float]:
    """Run each contestant twice: counting what it keeps, and its peak memory; compare with ours. Returns the seconds of the second run."""
    seconds: dict[str, float] = {}
    ours: list[Tensor] | None = None
    for name, contestant in comparison.contestants.items():
        try:
            with _Saved(comparison.kept_anyway) as saved:
                found = contestant.run()
            result.saved_bytes[name] = saved.num_bytes
            if ours is None:
                ours = [x.detach() for x in found]
                if comparison.saved_bytes not in (None, saved.num_bytes):
                    raise SystemExit(f"{comparison.name}: ours keeps {saved.num_bytes} bytes, {comparison.saved_bytes} are claimed")
            elif contestant.comparable is not None:
                result.differences[name] = _worst_difference(comparison, name, contestant.comparable(found), ours)
            del found
            started = time.perf_counter()
            result.peak_bytes[name] = _peak(contestant.run, device)
            seconds[name] = time.perf_counter() - started
        except torch.OutOfMemoryError:
            result.failures[name] = "out of memory"
        except ValueError as error:
            if name == OURS:
                raise
            result.failures[name] = f"refused: {error}"
    return seconds


def _worst_difference(comparison: Comparison, name: str, theirs: Sequence[Tensor], ours: Sequence[Tensor]) -> float:
    tolerance = TOLERANCES[comparison.dtype]
    worst = max(difference(left.detach(), right) for left, right in zip(theirs, ours, strict=True))
    if not worst <= tolerance:  # written so that nan stops it
        raise SystemExit(f"{comparison.name}: {name} differs from ours by {worst:.1e}, tolerance {tolerance:g}")
    return worst


def _peak(run: Callable[[], object], device: torch.device) -> int:
    """Bytes of device memory that a run takes beyond what was there before, its results included; 0 on a CPU, which does not count them."""
    if device.type != "cuda":
        run()
        return 0
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


class _Saved:
    """Bytes that autograd is given to keep, each storage once, without those of parameters."""

    def __init__(self, kept_anyway: Sequence[Tensor]) -> None:
        self.num_bytes = 0
        self._seen = {x.untyped_storage().data_ptr() for x in kept_anyway}
        self._hooks: AbstractContextManager[Any] = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda x: x)

    def _keep(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.num_bytes += storage.nbytes()
        return x

    def __enter__(self) -> _Saved:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)


def _calls(seconds: float, plan: Plan) -> int:
    return 1 if plan.device.type == "cuda" else max(1, round(plan.sample_seconds / max(seconds, 1e-6)))


def _rounds(seconds: float, plan: Plan) -> int:
    return max(1, min(plan.rounds, int(plan.most_seconds / max(seconds, 1e-6))))


def _clock(device: torch.device) -> Callable[[Callable[[], object], int], float]:
    """A function of a run and how many calls of it: seconds of one call."""
    return _device_seconds if device.type == "cuda" else _cpu_seconds


def _cpu_seconds(run: Callable[[], object], calls: int) -> float:
    started = time.process_time()
    for _ in range(calls):
        run()
    return (time.process_time() - started) / calls


def _device_seconds(run: Callable[[], object], calls: int) -> float:
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    first.record()
    for _ in range(calls):
        run()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1000 / calls


def gradients(out: Tensor, wanted: Sequence[Tensor], grad_out: Tensor | None) -> list[Tensor]:
    """The output and the gradients of what is wanted; the output alone where nothing is."""
    return [out, *torch.autograd.grad(out, list(wanted), grad_out)] if wanted else [out]


def grad_mode(wanted: Sequence[Tensor]) -> AbstractContextManager[Any]:
    """No graph where no gradient is wanted."""
    return nullcontext() if wanted else torch.no_grad()
