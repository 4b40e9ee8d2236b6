"""The processes of a run and how they are laid out: one process, or ranks started by torchrun.

``world = data parallel``; expert parallelism lies over the same ranks. An expert-parallel group is ``expert_parallel_size`` consecutive
ranks; ranks that hold the same experts are ``expert_parallel_size`` apart. Exercise it: ``pytest tests/ms4_train/parallel/test_mesh.py``.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor

from ms4_train.config.schema import ParallelSection
from ms4_train.errors import ParallelError


@dataclass(frozen=True)
class Mesh:
    """One process's place among all of them. ``Mesh()`` is a run of a single process.

    Ranks of one ``expert_parallel_group`` share out the experts; ranks of one ``expert_data_parallel_group`` hold the same ones. Both are
    None with one process. Collective methods must be called by every rank in the same order; with one process they cost nothing.
    """

    rank: int = 0
    world_size: int = 1
    expert_parallel_size: int = 1
    expert_parallel_rank: int = 0
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    expert_parallel_group: dist.ProcessGroup | None = field(default=None, repr=False, compare=False)
    expert_data_parallel_group: dist.ProcessGroup | None = field(default=None, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this rank prints, logs and writes what is written once."""
        return self.rank == 0

    @property
    def expert_data_parallel_size(self) -> int:
        """How many ranks hold the same experts."""
        return self.world_size // self.expert_parallel_size

    @property
    def expert_data_parallel_rank(self) -> int:
        """This rank's place among those that hold the same experts."""
        return self.rank // self.expert_parallel_size

    def expert_range(self, num_experts: int) -> tuple[int, int]:
        """The experts ``[a, b)`` that this rank holds.

        Raises:
            ParallelError: ``num_experts`` cannot be divided evenly over the expert-parallel ranks.
        """
        if num_experts % self.expert_parallel_size:
            divisors = [d for d in range(1, min(num_experts, self.world_size) + 1) if num_experts % d == 0 and self.world_size % d == 0]
            raise ParallelError(
                f"{num_experts} experts cannot be divided over {self.expert_parallel_size} ranks.",
                key="parallel.expert_parallel_size",
                fix=f"use one of {', '.join(map(str, divisors))}.",
            )
        local = num_experts // self.expert_parallel_size
        return self.expert_parallel_rank * local, (self.expert_parallel_rank + 1) * local

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            dist.barrier()

    @overload
    def all_reduce_sum(self, value: Tensor) -> Tensor: ...
    @overload
    def all_reduce_sum(self, value: float) -> float: ...
    def all_reduce_sum(self, value: Tensor | float) -> Tensor | float:
        """The sum of ``value`` over all ranks, on every rank. Floats are added in fp64; a tensor is not changed in place."""
        if self.world_size == 1:
            return value
        if isinstance(value, Tensor):
            total = value.detach().clone()
            dist.all_reduce(total)
            return total
        total = torch.tensor([value], dtype=torch.float64, device="cpu")
        dist.all_reduce(total)
        return float(total.item())

    def all_gather_json(self, value: Any) -> list[Any]:
        """Every rank's ``value`` (anything JSON can hold), in the order of ranks, on every rank. No pickle is involved."""
        text = json.dumps(value)
        if self.world_size == 1:
            return [json.loads(text)]
        payload = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([payload.numel()]))
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: payload.numel()] = payload
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded)
        return [json.loads(bytes(part[: int(size)].tolist())) for part, size in zip(parts, sizes, strict=True)]

    def close(self) -> None:
        """Leave the process group. Calling it twice, or with one process, does nothing."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def init_mesh(section: ParallelSection) -> Mesh:
    """Join the processes that torchrun started, or be the only one.

    Reads ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK`` (and torch's own ``MASTER_ADDR``, ``MASTER_PORT``). Uses NCCL for tensors on a GPU and
    gloo for the rest; without a GPU it also tells DeepSpeed to use the CPU.

    Raises:
        ParallelError: the number of processes does not fit ``expert_parallel_size``, the environment is incomplete, or a GPU is missing.
    """
    world_size = _environment_int("WORLD_SIZE", 1)
    size = section.expert_parallel_size
    if world_size % size:
        raise ParallelError(
            f"{world_size} process{'es' if world_size > 1 else ''} cannot be divided into groups of {size}.",
            key="parallel.expert_parallel_size",
            fix=f"start a multiple of {size} processes (torchrun --nproc-per-node {size} ...), or set it to a divisor of {world_size}.",
        )
    if world_size == 1:
        return Mesh(device=torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))
    rank, local_rank = _environment_int("RANK", None), _environment_int("LOCAL_RANK", 0)
    if not 0 <= rank < world_size:
        raise ParallelError(f"RANK is {rank}, but WORLD_SIZE is {world_size}.", key="RANK", fix="start the processes with torchrun.")
    device, timeout = _device(local_rank), timedelta(seconds=section.timeout_seconds)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=timeout)
    expert_parallel = _own_group([list(range(start, start + size)) for start in range(0, world_size, size)], rank, timeout)
    expert_data_parallel = _own_group([list(range(start, world_size, size)) for start in range(size)], rank, timeout)
    return Mesh(rank, world_size, size, rank % size, local_rank, device, expert_parallel, expert_data_parallel)


def _own_group(members: list[list[int]], rank: int, timeout: timedelta) -> dist.ProcessGroup:
    own = None
    for ranks in members:  # every rank must take part in making every group
        group = dist.new_group(ranks, timeout=timeout)
        if rank in ranks:
            own = group
    assert isinstance(own, dist.ProcessGroup)
    return own


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported; otherwise it guesses from what is installed
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ParallelError(
            f"process {local_rank} of this machine has no GPU; there are {torch.cuda.device_count()}.",
            key="LOCAL_RANK",
            fix=f"start at most {torch.cuda.device_count()} processes per machine (torchrun --nproc-per-node).",
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _environment_int(name: str, default: int | None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        raise ParallelError(
            f"the environment variable is {text!r}, not a number.", key=name, fix="start the processes with torchrun."
        ) from None
