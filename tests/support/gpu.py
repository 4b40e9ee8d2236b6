"""What the tests on a CUDA device share: the marks, inputs moved there, the rule by which a result is judged, and counts of its memory.

Nothing but the marks needs a device, so ``tests/test_gpu_checks.py`` holds the rest to its word, with controls, on any machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest
import torch
from support.experts_cases import FACTORS, Inputs
from torch import Tensor

DEVICE = torch.device("cuda")
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def moved(x: Tensor, device: torch.device | None = None) -> Tensor:
    """A leaf with the same values on the device, that wants a gradient if ``x`` does."""
    return x.detach().to(device or DEVICE).requires_grad_(x.requires_grad)


def moved_inputs(inputs: Inputs, device: torch.device | None = None) -> Inputs:
    """A call of the experts operation on the device."""
    values = {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
    lora = values.pop("lora")
    if lora is not None:
        factors = {name: getattr(lora, name) for name in FACTORS}
        lora = dataclasses.replace(lora, **{name: None if x is None else moved(x, device) for name, x in factors.items()})
    there = {
        name: x if x is None else moved(x, device) if isinstance(x, Tensor) else x.to(device or DEVICE)  # a quantised stack
        for name, x in values.items()
    }
    return Inputs(lora=lora, **there)  # type: ignore[arg-type]


def worse_than_torch(
    got: Mapping[str, Tensor], plain: Mapping[str, Tensor], exact: Mapping[str, Tensor], dtype: torch.dtype, *, zeros: bool = True
) -> list[str]:
    """Where a result breaks the rule, one line for each tensor and measure; [] where it holds.

    The norm of the error against ``exact``, which is fp64 on the same device, is at most twice that of ``plain``, which is torch's in the
    type of the call; the largest element's at most four times, for it is a matter of luck on both sides. No computation stores a result
    better than to half a unit in the last place, which torch at times does by luck; of fewer than 32 numbers an error is no estimate of
    anything, hence eight such units there. With ``zeros``, what is exactly zero in fp64 must be zero.
    """
    assert got.keys() == plain.keys() == exact.keys()
    found = []
    for name, wide in exact.items():
        mine, other = got[name], plain[name]
        if mine.shape != wide.shape or mine.dtype != other.dtype:
            found.append(f"{name}: {mine.dtype} {list(mine.shape)} instead of {other.dtype} {list(wide.shape)}")
            continue
        if not wide.numel():
            continue
        floor = torch.finfo(dtype).eps / 2 * (8 if wide.numel() < 32 else 1)
        for measure, size, factor in (("norm", torch.linalg.vector_norm, 2), ("largest", lambda x: x.abs().max(), 4)):
            error, allowed = (float(size(x.double() - wide) / size(wide).clamp(min=1e-300)) for x in (mine, other))
            if not error <= max(factor * allowed, floor):  # written so that nan breaks it
                found.append(f"{name}: {measure} of the error {error:.2e}, plain torch {allowed:.2e}")
        if zeros and bool((mine[wide == 0] != 0).any()):
            found.append(f"{name}: not zero where it must be")
    return found


def differing(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> list[str]:
    """Names of what is not equal to the bit."""
    assert left.keys() == right.keys()
    return [name for name, x in left.items() if not torch.equal(x, right[name])]


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill new memory (``torch.empty``) with nan, or the largest integer: what a kernel fails to write then shows."""
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # a run of the recipe in this process has switched it off
    torch.use_deterministic_algorithms(True, warn_only=True)  # cuBLAS would otherwise ask for a setting of the environment
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        torch.utils.deterministic.fill_uninitialized_memory = fills


@contextmanager
def no_host_wait() -> Iterator[None]:
    """Raise where torch makes the host wait for the device (``.item()``, ``nonzero``, a copy to pageable memory)."""
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def saved_bytes(forward: Callable[[], object], without: Mapping[str, Tensor] | None = None) -> dict[str, int]:
    """Bytes that autograd is given to keep by a forward, each storage once: of floating tensors, and of others.

    Args:
        forward: the call.
        without: what exists anyway: parameters.
    """
    seen = {x.untyped_storage().data_ptr() for x in (without or {}).values()}
    sizes = {"floating": 0, "other": 0}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            sizes["floating" if x.is_floating_point() else "other"] += storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        result = forward()  # held until all is counted: an address that is free again could be given out twice
    del result
    return sizes


def peak_bytes(run: Callable[[], object]) -> int:
    """Most device memory that was allocated during a run, beyond what was before; the results are in it."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def need_memory(gib: float) -> None:
    """Skip where the device has less memory free than a test takes."""
    free, _ = torch.cuda.mem_get_info(DEVICE)
    if free < gib * 2**30:
        pytest.skip(f"takes {gib:g} GiB of device memory, {free / 2**30:.1f} are free")
