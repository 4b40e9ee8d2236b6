"""The trained parameters of a model, in one order for every engine, and what is true of each: expert or replicated, decayed or not.

Exercise it: ``pytest tests/ms4_train/parallel/test_parameters.py``.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ms4_train.errors import CheckpointError, TrainingError
from ms4_train.model.moe import Mistral4Experts
from ms4_train.model.quantised import QuantisedStack, quantised_modules
from ms4_train.parallel.mesh import Mesh

STATE_TENSORS = ("weight", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class TrainedParameter:
    """One trained parameter, or this rank's slice of it.

    Attributes:
        sharded: dim 0 counts experts and expert parallelism spreads them, so this rank holds rows ``[offset, offset + local_shape[0])``.
        decays: whether weight decay applies.
        offset: first row that this rank holds.
    """

    name: str
    parameter: nn.Parameter
    sharded: bool
    decays: bool
    local_shape: tuple[int, ...]
    full_shape: tuple[int, ...]
    offset: int

    @property
    def flat_range(self) -> tuple[int, int]:
        """The values ``[start, stop)`` of the flattened full parameter that this rank's model computes with."""
        size = math.prod(self.local_shape)
        start = self.offset * (size // self.local_shape[0]) if self.sharded else 0
        return start, start + size


def expert_modules(model: nn.Module) -> Iterator[tuple[str, Mistral4Experts]]:
    """The modules that hold stacked experts, by name."""
    for name, module in model.named_modules():
        if isinstance(module, Mistral4Experts):
            yield name, module


def expert_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter whose dim 0 counts experts, frozen ones and adapters of experts too, by name."""
    return {
        (f"{prefix}.{name}" if prefix else name): parameter
        for prefix, module in expert_modules(model)
        for name, parameter in module.named_parameters()
    }


def trained_parameters(model: nn.Module, mesh: Mesh) -> list[TrainedParameter]:
    """Parameters with ``requires_grad``, in the order of ``named_parameters``. Norms and other 1-D parameters do not decay.

    Raises:
        TrainingError: there is none.
    """
    sharded_names = set(expert_parameters(model)) if mesh.expert_parallel_size > 1 else set()
    trained = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        shape, sharded = tuple(getattr(parameter, "ds_shape", parameter.shape)), name in sharded_names  # ZeRO 3 empties the parameter
        trained.append(
            TrainedParameter(
                name=name,
                parameter=parameter,
                sharded=sharded,
                decays=len(shape) >= 2,
                local_shape=shape,
                full_shape=(shape[0] * mesh.expert_parallel_size, *shape[1:]) if sharded else shape,
                offset=shape[0] * mesh.expert_parallel_rank if sharded else 0,
            )
        )
    if not trained:
        raise TrainingError("no parameter of the model is trained.", fix="add an adapter section, or train the full model.")
    return trained


def broadcast_quantised(model: nn.Module, mesh: Mesh) -> None:
    """Make replicas of quantised weights equal, as engines make parameters equal.

    The values are those of rank 0; of experts, those of the first rank that holds the same ones.
    """
    for _, module in quantised_modules(model):
        sharded = isinstance(module, QuantisedStack) and mesh.expert_parallel_size > 1
        for part in module.buffers():
            if part.numel():
                dist.broadcast(part, group=mesh.expert_data_parallel_group if sharded else None, group_src=0)


def gather_experts(local: Tensor, mesh: Mesh) -> Tensor:
    """The full stack of experts from every rank's slice, on every rank."""
    full = local.new_empty(local.shape[0] * mesh.expert_parallel_size, *local.shape[1:])
    parts = list(full.split(local.shape[0]))
    dist.all_gather(parts, local.contiguous(), group=mesh.expert_parallel_group)
    return full


@contextlib.contextmanager
def gathered(parameter: nn.Parameter) -> Iterator[Tensor]:
    """The whole value of a parameter, which ZeRO 3 may have spread over ranks, for reading inside the ``with``. Collective."""
    if not hasattr(parameter, "ds_id"):
        yield parameter.detach()
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        yield parameter.detach()


def even_share(start: int, stop: int, index: int, count: int) -> tuple[int, int]:
    """Part ``index`` of ``count`` consecutive parts of ``[start, stop)`` whose sizes differ by one at most; may be empty."""
    size = stop - start
    return start + size * index // count, start + size * (index + 1) // count


def checked_piece(name: str, values: int, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """The three stored tensors of a piece, each [values] in fp32, and the step count; refused when one is missing or of another size.

    Raises:
        CheckpointError: names the parameter and what is wrong with it.
    """
    tensors: dict[str, Tensor] = {}
    for kind in (*STATE_TENSORS, "step"):
        if kind not in state:
            raise CheckpointError(f"the stored state has no {kind}.", key=name, fix="resume from another checkpoint.")
        if kind == "step":
            continue
        tensor = state[kind]
        if tuple(tensor.shape) != (values,) or tensor.dtype != torch.float32:
            raise CheckpointError(
                f"the stored {kind} is {tensor.dtype} {list(tensor.shape)}; this model needs torch.float32 [{values}].",
                key=name,
                fix="resume with the model and adapter that the checkpoint was written with.",
            )
        tensors[kind] = tensor
    return tensors, int(state["step"])
