"""How much memory each rank of a run needs, said before it starts: ``ms4 train --dry-run`` prints it.

Weights and what is trained are counted on the run's own model, tensor by tensor; gradients and optimizer state by the rules of the engine
that will hold them (``ms4_train.parallel``), which were read off live engines: a test counts their tensors. Activations are an estimate
(``activations``). Exercise it: ``pytest tests/ms4_train/planning/test_memory.py``.

Not covered: evaluation during training, whose caches are its own section's to bound; page-locked memory that torch keeps after the weights
were read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ms4_train.checkpoint import checkpoint_bytes
from ms4_train.checkpoint.page_locked import page_locked_bytes
from ms4_train.checkpoint.part import BYTES_PER_VALUE, SHARD_BYTES
from ms4_train.config.schema import SftRun
from ms4_train.model import Mistral4ForCausalLM
from ms4_train.model.quantised import quantised_bytes, quantised_modules
from ms4_train.parallel.deepspeed_setup import MAX_BUCKET_ELEMENTS
from ms4_train.parallel.parameters import expert_parameters
from ms4_train.planning.activations import activations
from ms4_train.planning.planned_model import Base, planned_model
from ms4_train.weights.reading.base_weights import readable_bytes

GATHERED_ELEMENTS = 1_050_000_000
"""Values that ZeRO 3 keeps gathered at once: DeepSpeed's ``max_live_parameters`` and what it fetches ahead."""
SUB_GROUP_ELEMENTS = 1_000_000_000
"""Values that ZeRO 3 updates at once: DeepSpeed's ``sub_group_size``."""
RESERVED = 5_000_000_000
"""Assumed, not measured: CUDA's and NCCL's own memory, and what the allocator loses between blocks."""
PROGRAM = 4_000_000_000
"""Assumed: host memory of one process beside a GPU, with its libraries and its share of the rows."""
PROGRAM_ON_CPU = 700_000_000
"""The same where the process computes on the CPU; torch and DeepSpeed alone are most of it."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one rank: on its device, ``host`` in the memory of its machine, and ``checkpoint`` on the disk, of all ranks.

    Without a GPU the device is the machine itself, and ``host`` is not told apart.

    Attributes:
        weights: parameters, codes and scales, as they lie between two steps.
        optimizer: fp32 weights and two moments.
        gradients: at the end of a backward pass, buckets included.
        update: copies of gradients that a step makes; activations are gone by then.
        activations: kept for the backward pass, and one layer's work.
        exchange: rows between expert-parallel ranks.
        logits: of a chunk, and the loss's gradients.
        gathered: weights that exist for a moment: of ZeRO 3, whole; of quantised layers, dequantised.
        saving: what a save holds of this rank's state beside the state itself, on the host: a copy, where it goes on beside training.
        host: on the machine, for each rank; ``saving`` is part of it.
        checkpoint: of one of them.
    """

    processes: int
    weights: int
    optimizer: int
    gradients: int
    update: int
    activations: int
    exchange: int
    logits: int
    gathered: int
    saving: int
    host: int
    checkpoint: int
    on_gpu: bool = True

    @property
    def reserved(self) -> int:
        """What is there before the first tensor, and between them."""
        return RESERVED if self.on_gpu else PROGRAM_ON_CPU

    @property
    def device(self) -> int:
        """The most that a rank's device holds: in the backward pass, or while the optimizer works."""
        passing = self.activations + self.exchange + self.logits + self.gathered
        copied = 0 if self.on_gpu else self.saving
        return self.reserved + self.weights + self.optimizer + self.gradients + max(passing, self.update) + copied

    def lines(self) -> Iterator[str]:
        """The plan as a table, in GB of 10^9 bytes, or in MB where that says more."""
        unit, size = ("GB", 1e9) if self.device > 1e10 else ("MB", 1e6)
        yield f"memory of each of {self.processes} ranks, in {unit}:" if self.processes > 1 else f"memory, in {unit}:"
        for label, count in self.rows():
            yield f"  {label:<44}{count / size:>9.2f}"

    def rows(self) -> Iterator[tuple[str, int]]:
        """(label, bytes) of each line; see ``lines``."""
        yield "weights", self.weights
        yield "optimizer: fp32 weights and two moments", self.optimizer
        yield "gradients", self.gradients
        yield "activations", self.activations
        yield "rows between ranks of experts", self.exchange
        yield "logits of a chunk, gradients of the loss", self.logits
        yield "weights that exist for a moment", self.gathered
        yield "copies of gradients in the update, later", self.update
        if not self.on_gpu:
            yield "copy of the state while it is saved", self.saving
        yield ("reserved for CUDA, NCCL and gaps" if self.on_gpu else "the program itself"), self.reserved
        yield ("together on the device, at most" if self.on_gpu else "together, at most"), self.device
        if self.on_gpu:
            yield "on the host, for each rank", self.host
        yield "on the disk, one checkpoint of all ranks", self.checkpoint


def plan_memory(run: SftRun, base: Base, processes: int, *, images: bool = True, on_gpu: bool = True) -> MemoryPlan:
    """Plan the memory of a run.

    Args:
        run: the whole run; its mesh fits (``check_mesh``).
        base: the model that it starts from.
        processes: in all.
        images: whether training rows hold any.
        on_gpu: whether ranks compute on one; otherwise nothing is moved to the host, for all of it is there.

    Raises:
        AdapterError: an adapter that cannot be put on this model.
    """
    model = planned_model(run, base, images=images)
    size = getattr(torch, run.model.dtype).itemsize
    held = _Held.of(model, run, processes)
    passing = activations(model, run, images=images)
    stage = run.parallel.zero_stage if processes > 1 else 0
    weights = _weight_bytes(model, held, run, stage)
    optimizer, gradients, update = _engine(held, stage, size)
    moved = 0
    offloads = on_gpu and stage > 0 and run.parallel.offload_optimizer == "cpu"
    if offloads:
        moved, gradients = _offloaded(held, stage, size)
        optimizer, update = 0, 0
    read = weights
    if on_gpu and stage == 3 and run.parallel.offload_parameters == "cpu":
        moved, weights = moved + held.all_page_locked, weights - size * held.all_partition
    saving = _saving(held, run, processes, moves=on_gpu and not offloads)
    host = PROGRAM + max(read, moved + saving)  # what is read lies on the host until it is moved; saves come later
    return MemoryPlan(
        processes=processes,
        weights=weights,
        optimizer=optimizer,
        gradients=gradients,
        update=update,
        activations=passing.kept + passing.working,
        exchange=passing.exchange,
        logits=passing.logits,
        gathered=_momentary(model, held, size, stage),
        saving=saving,
        host=host,
        checkpoint=checkpoint_bytes(held.trained_in_all),
        on_gpu=on_gpu,
    )


@dataclass(frozen=True)
class _Held:
    """Numbers of values.

    Attributes:
        trained: of this rank's trained parameters.
        largest: of the largest of them.
        groups: of each group that is updated together, its parameters: values of each, and of this rank's part as ZeRO spreads it.
        everything: of all of this rank's parameters, frozen ones too; codes aside.
        all_partition: this rank's part of those.
        all_page_locked: bytes that this part takes in page-locked memory, each parameter by itself.
        trained_in_all: over all ranks, each once.
    """

    trained: int
    largest: int
    groups: tuple[tuple[tuple[int, int], ...], ...]
    everything: int
    all_partition: int
    all_page_locked: int
    trained_in_all: int

    @property
    def partition(self) -> int:
        """This rank's part of what is trained."""
        return sum(part for group in self.groups for _, part in group)

    @property
    def largest_group(self) -> int:
        """The largest part that is updated at once."""
        return max((sum(part for _, part in group) for group in self.groups), default=0)

    @classmethod
    def of(cls, model: Mistral4ForCausalLM, run: SftRun, processes: int) -> _Held:
        ranks = run.parallel.expert_parallel_size
        sharded = set(expert_parameters(model)) if ranks > 1 else set()
        parameters = list(model.named_parameters())
        trained = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]

        def part(name: str, parameter: nn.Parameter) -> int:
            return -(-parameter.numel() // (processes // ranks if name in sharded else processes))

        groups: dict[tuple[bool, bool], list[tuple[int, int]]] = {}
        for name, parameter in trained:
            groups.setdefault((name in sharded, parameter.ndim >= 2), []).append((parameter.numel(), part(name, parameter)))
        return cls(
            trained=sum(parameter.numel() for _, parameter in trained),
            largest=max((parameter.numel() for _, parameter in trained), default=0),
            groups=tuple(map(tuple, groups.values())),
            everything=sum(parameter.numel() for _, parameter in parameters),
            all_partition=sum(part(name, parameter) for name, parameter in parameters),
            all_page_locked=sum(page_locked_bytes(part(name, parameter) * parameter.itemsize) for name, parameter in parameters),
            trained_in_all=sum(parameter.numel() * (ranks if name in sharded else 1) for name, parameter in trained),
        )


def _weight_bytes(model: Mistral4ForCausalLM, held: _Held, run: SftRun, stage: int) -> int:
    size = getattr(torch, run.model.dtype).itemsize
    return quantised_bytes(model) + size * (held.all_partition if stage == 3 else held.everything)


def _engine(held: _Held, stage: int, size: int) -> tuple[int, int, int]:
    """Bytes of optimizer state, of gradients at the end of a backward pass, and of the copies that an update makes."""
    bucket = min(MAX_BUCKET_ELEMENTS, held.trained)
    beyond = size * held.largest if held.largest > bucket else 0  # is not gathered in the bucket, but reduced by itself
    half = size < 4
    if stage == 0:  # weights of fp32 are their own masters; a gradient of bf16 is gone when it was added to that of its master
        return (12 if half else 8) * held.trained, 4 * held.trained + (size * held.largest if half else 0), 0
    if stage == 1:  # every rank adds up all gradients, in fp32, until the last micro batch; those of bf16 lie beside that sum
        buckets = size * held.trained if half else (4 * bucket if bucket < held.trained else 0)
        return 12 * held.partition, 4 * held.trained + buckets, 4 * held.largest_group
    if stage == 2:
        return 12 * held.partition, 4 * held.partition + size * bucket + beyond, 4 * held.largest_group
    update = 4 * min(held.largest_group, SUB_GROUP_ELEMENTS)
    return 12 * held.partition, size * (held.partition + bucket) + beyond, update


def _offloaded(held: _Held, stage: int, size: int) -> tuple[int, int]:
    """Bytes of offloaded optimizer state and of what lies beside it on the host, and those of gradients that stay on the device.

    Read in DeepSpeed 0.19.8, not measured: an fp32 gradient of each value is there from the start, beside it what is added up in the type
    of the weights; in stages 1 and 2 a buffer of updated weights besides, and on the device one for the largest gradient. Gradients,
    buffers and, in stages 1 and 2, fp32 weights are page-locked, block by block.
    """
    bucket = min(MAX_BUCKET_ELEMENTS, held.trained)
    if stage == 3:
        gradients = sum(page_locked_bytes(4 * block) for group in held.groups for block in _sub_groups(group))
        sums = page_locked_bytes(size * held.partition)
        return 12 * held.partition + gradients + sums, size * (bucket + (held.largest if held.largest > bucket else 0))
    parts = [sum(part for _, part in group) for group in held.groups]
    locked = sum(2 * page_locked_bytes(4 * part) + page_locked_bytes(size * part) for part in parts)
    # Of a whole parameter each, for those that this rank holds most of: its share of all of them.
    sums = sum(page_locked_bytes(size * whole) * part // whole for group in held.groups for whole, part in group)
    return 8 * held.partition + locked + sums, size * (bucket + held.largest)


def _sub_groups(group: Iterable[tuple[int, int]]) -> Iterator[int]:
    """Values of the parts that ZeRO 3 updates one after the other: parameters in their order, until there are enough."""
    count = 0
    for _, part in group:
        count += part
        if count >= SUB_GROUP_ELEMENTS:
            yield count
            count = 0
    if count:
        yield count


def _saving(held: _Held, run: SftRun, processes: int, *, moves: bool) -> int:
    """Bytes beside the state while this rank writes its part of a checkpoint; ``moves``: from a GPU to the host.

    In the background a copy of the part. Else nothing where the state is on the host, and what goes into one file where it is not: a file
    is closed by the piece that makes it large enough, so it may be larger by one.
    """
    part = checkpoint_bytes(held.trained_in_all) // processes
    if run.training.save_strategy == "no" or not (run.training.save_async or moves):
        return 0
    # ZeRO 1 and 2 give a rank some parameters whole, the others a part of each.
    whole = processes > 1 and run.parallel.zero_stage in (1, 2)
    largest = max((values if whole else own for group in held.groups for values, own in group), default=0)
    return part if run.training.save_async else min(part, SHARD_BYTES + BYTES_PER_VALUE * largest)


def _momentary(model: Mistral4ForCausalLM, held: _Held, size: int, stage: int) -> int:
    """Under ZeRO 3 a few layers' weights, whole; otherwise the largest quantised linear layer, which the experts operation is not."""
    matrices = [module.logical_shape.numel() for _, module in quantised_modules(model) if len(module.logical_shape) == 2]
    gathered = min(GATHERED_ELEMENTS, held.everything) if stage == 3 else 0
    return size * (gathered + max(matrices, default=0))


def memory_warning(plan: MemoryPlan, available: int, what: str = "the device") -> str | None:
    """A line where a device has less than planned, else None."""
    if available >= plan.device:
        return None
    return (
        f"warning: {what} has {readable_bytes(available)}, about {readable_bytes(plan.device - available)} less than this run needs. "
        "Raise parallel.expert_parallel_size or zero_stage, or lower data.max_length."
    )


def host_warning(plan: MemoryPlan, available: int, ranks: int) -> str | None:
    """A line where a machine with ``ranks`` of the run has less memory than they need beside their GPUs, else None.

    Without a GPU there is none: ``memory_warning`` says it.
    """
    needed = plan.host * ranks
    if not plan.on_gpu or available >= needed:
        return None
    each = f"{ranks} ranks, {readable_bytes(plan.host)} each" if ranks > 1 else "one rank"
    return (
        f"warning: this machine has {readable_bytes(available)} of memory, about {readable_bytes(needed - available)} less than this run "
        f"needs beside its GPUs ({each}). Spread it over more machines, or set training.save_async=false, which saves without a copy."
    )
