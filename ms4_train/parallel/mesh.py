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

from ms4_train.config.mesh import check_mesh, planned_processes
from ms4_train.config.schema import ParallelSection
from ms4_train.errors import ParallelError
from ms4_train.parallel.alike import require_alike

_START = "start the processes with --nproc N of `ms4 train`, `ms4 eval run` or `ms4 generate`, or with torchrun."


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
            check_mesh(ParallelSection(expert_parallel_size=self.expert_parallel_size), self.world_size, num_experts)
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


def init_mesh(section: ParallelSection, *, rehearse: bool = False, num_experts: int | None = None) -> Mesh:
    """Join the processes that were started with this one, or be the only one.

    Reads ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK`` (and torch's own ``MASTER_ADDR``, ``MASTER_PORT``). Uses NCCL for tensors on a GPU and
    gloo for the rest; without a GPU it also tells DeepSpeed to use the CPU.

    Args:
        section: of the run.
        rehearse: for a dry run. A single process then takes the place of rank 0 of ``data_parallel_size``: it reads and counts what that
            rank would, and must not call anything collective, for the others are not there.
        num_experts: routed experts of a layer, where the model was looked at: what a refusal offers then fits them too.

    Raises:
        ParallelError: the number of processes does not fit the section, the environment is incomplete, a GPU is missing, the other
            processes cannot be reached, or they have another section.
    """
    started = started_processes()
    world_size = planned_processes(section, started) if rehearse else started
    assert world_size is not None
    size = section.expert_parallel_size
    check_mesh(section, world_size, num_experts)
    if started == 1:
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        return Mesh(world_size=world_size, expert_parallel_size=size, device=device)
    rank, local_rank = _environment_int("RANK", None), _environment_int("LOCAL_RANK", 0)
    if not 0 <= rank < world_size:
        raise ParallelError(f"RANK is {rank}, but WORLD_SIZE is {world_size}.", key="RANK", fix=_START)
    device, timeout = _device(local_rank), timedelta(seconds=section.timeout_seconds)
    if not dist.is_initialized():
        _join("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", rank, world_size, timeout)
    _require_same_section(section, rank, world_size)
    expert_parallel = _own_group([list(range(start, start + size)) for start in range(0, world_size, size)], rank, timeout)
    expert_data_parallel = _own_group([list(range(start, world_size, size)) for start in range(size)], rank, timeout)
    return Mesh(rank, world_size, size, rank % size, local_rank, device, expert_parallel, expert_data_parallel)


def started_processes() -> int:
    """The number of processes that were started together, by the environment; 1 for a plain start.

    Raises:
        ParallelError: the environment belongs to one of several processes but does not say of how many, so that each would train alone.
    """
    if "WORLD_SIZE" in os.environ:
        count = _environment_int("WORLD_SIZE", None)
        if count < 1:
            raise ParallelError(f"is {count}.", key="WORLD_SIZE", fix=_START)
        return count
    if "RANK" in os.environ:
        raise ParallelError(f"is not set, although RANK is {os.environ['RANK']}.", key="WORLD_SIZE", fix=f"{_START[:-1]}, or unset RANK.")
    # Inside `srun` with several tasks; in a batch script itself, and in an interactive shell, there is one.
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks.isdigit() and int(tasks) > 1:
        raise ParallelError(
            f"SLURM started {tasks} tasks of this program, but WORLD_SIZE is not set, so each would train alone.",
            key="SLURM_STEP_NUM_TASKS",
            fix="start torchrun once per node, or set RANK, WORLD_SIZE and LOCAL_RANK, as configs/launch/slurm.sbatch does.",
        )
    return 1


def _join(backend: str, rank: int, world_size: int, timeout: timedelta) -> None:
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise ParallelError("is not set, although WORLD_SIZE is.", key=missing[0], fix=_START)
    place = f"{os.environ['MASTER_ADDR']}:{_environment_int('MASTER_PORT', None)}"
    try:
        dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=timeout)
    except dist.DistError as error:  # what the store and the network raise; a defect of ours is something else
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise ParallelError(
                f"{place} is in use by another program.", key="MASTER_PORT", fix="set another port, or end the run that has it."
            ) from error
        first_line = str(error).strip().partition("\n")[0]
        raise ParallelError(
            f"the {world_size} processes did not meet at {place} within {timeout.total_seconds():g} s ({first_line}).",
            key="MASTER_ADDR",
            fix="see whether all were started and this machine reaches that address; they wait for parallel.timeout_seconds.",
        ) from error


def _require_same_section(section: ParallelSection, rank: int, world_size: int) -> None:
    """Before groups are made: ranks that lay the run out differently would wait for each other in different ones."""
    own = {f"parallel.{key}": value for key, value in section.model_dump(mode="json").items()}
    try:
        require_alike(Mesh(rank, world_size), own, fix="start every rank with the same file and overrides.")
    except ParallelError:
        dist.destroy_process_group()
        raise


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
        what = "the environment variable is not set" if text is None else f"the environment variable is {text!r}, not a number"
        raise ParallelError(f"{what}.", key=name, fix=_START) from None
