"""Parameters spread over the ranks for ZeRO 3, one by one, before DeepSpeed's engine sees the model.

DeepSpeed's engine moves a whole model to the device, broadcasts all of it and then partitions it, so every rank needs room for all of it.
Here a parameter whose share was read from the files (``weights.reading.shares``) becomes a ZeRO parameter without ever being whole, and
without a broadcast: all ranks read the same files, which ``training.same_start`` compares. Others, for the most part of adapters, are
moved, made equal to rank 0's and partitioned one at a time, by DeepSpeed's own function. The engine takes such a model as it is.
Exercise it: ``pytest tests/ms4_train/parallel/test_zero3.py``.

Not covered: buffers, codes of quantised weights among them, which ZeRO does not spread.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ms4_train.parallel.mesh import Mesh
from ms4_train.weights.reading.shares import WHOLE, FlatShare, Sharing, move, take_share


def sharing_of(mesh: Mesh, zero_stage: int) -> Sharing:
    """What a rank reads of each parameter: its share under ZeRO 3 with several ranks, else everything."""
    if mesh.world_size == 1 or zero_stage != 3:
        return WHOLE
    return Sharing(mesh.rank, mesh.world_size, mesh.expert_data_parallel_rank, mesh.expert_data_parallel_size)


def partition_parameters(model: nn.Module, mesh: Mesh, config: dict[str, Any]) -> None:
    """Make ZeRO parameters of all parameters of ``model``. Collective.

    Args:
        model: experts carry DeepSpeed's marks already, for they are spread over another group.
        mesh: of the ranks.
        config: DeepSpeed's, of stage 3; says whether partitions wait on the CPU.
    """
    from deepspeed.runtime.zero.partition_parameters import Init

    move(model, mesh.device, shares_only=True)
    parameters = list(model.parameters())
    init = Init(config_dict_or_path=config, dtype=parameters[0].dtype)
    if init.mem_efficient_linear:
        init._enable_mem_efficient_linear()  # a product that does not keep the gathered weight for its backward pass
    for parameter in parameters:
        share = take_share(parameter)
        if share is None:
            init._convert_to_zero_parameters([parameter])
        else:
            _convert(parameter, share, init)


def _convert(parameter: Any, share: FlatShare, init: Any) -> None:
    """What DeepSpeed does with a whole parameter, for one whose partition is there."""
    from deepspeed.runtime.zero.partition_parameters import PartitionedParamStatus

    init._convert_to_deepspeed_param(parameter)
    count, rank = parameter.ds_zero_partition_world_size, parameter.ds_zero_partition_rank
    length = share.values.numel()
    assert length == -(-parameter.ds_numel // count), (tuple(parameter.ds_shape), length, count)
    assert share.start == min(rank * length, parameter.ds_numel), (tuple(parameter.ds_shape), share.start, rank)
    partition: Any = share.values.to(init.local_device if parameter.ds_persist else init.remote_device)
    if init.pin_memory and partition.device.type == "cpu":
        partition = partition.pin_memory()
    partition.ds_numel = length
    partition.status = PartitionedParamStatus.AVAILABLE
    partition.final_location = None
    parameter.ds_tensor = partition
    parameter.ds_numel_aligned = length * count
    parameter.partition()  # it has one: only the stand-in goes
