"""How a model is handed to DeepSpeed: which parameters are experts, in which groups, with which configuration.

DeepSpeed does not know our experts. Left alone it overwrites the experts of all ranks with those of rank 0 and then averages their
gradients over everybody, without a word. Three marks prevent that: ``allreduce = False`` and ``group_name`` on every expert parameter,
frozen ones and adapters too; ``moe: True`` on the optimizer groups of trained experts; and an empty child module of a class that makes the
engine look for such groups (stages 1 and 2; stage 3 takes a process group per parameter instead). A test removes the marks and sees
training go wrong.
Exercise it: ``pytest tests/ms4_train/parallel/test_deepspeed_setup.py``.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ms4_train.config.schema import ParallelSection, TrainingSection
from ms4_train.errors import MissingDependencyError, ParallelError
from ms4_train.parallel.adamw import make_adamw
from ms4_train.parallel.mesh import Mesh
from ms4_train.parallel.parameters import TrainedParameter, expert_parameters
from ms4_train.parallel.zero3 import partition_parameters

MARKER_NAME = "ds_moe_marker"
MAX_BUCKET_ELEMENTS = 500_000_000


def initialize(
    model: nn.Module, trained: list[TrainedParameter], mesh: Mesh, *, training: TrainingSection, parallel: ParallelSection
) -> Any:
    """A ``DeepSpeedEngine`` of the deepspeed package over ``model`` with AdamW under ZeRO 1, 2 or 3.

    ``model`` lies on ``mesh.device``; under ZeRO 3 parameters may wait elsewhere, whole or as shares.

    Raises:
        ParallelError: trained parameters have several types, or one that DeepSpeed cannot train.
        MissingDependencyError: deepspeed is not installed.
    """
    config = engine_config(trained, parallel, pin_memory=mesh.device.type == "cuda")
    deepspeed = import_deepspeed(mesh)
    group_name = None
    if mesh.expert_parallel_size > 1:
        group_name = _mark_experts(model, trained, mesh, zero_stage=parallel.zero_stage)
    if parallel.zero_stage == 3:
        partition_parameters(model, mesh, config)
    optimizer = make_adamw(optimizer_groups(trained, group_name), training)
    with contextlib.redirect_stdout(io.StringIO()):  # memory reports that it prints; its warnings go through the logger and are seen
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    return engine


def import_deepspeed(mesh: Mesh) -> ModuleType:
    """The deepspeed package, told which device this is and to speak only when something is wrong.

    Raises:
        MissingDependencyError: it is not installed.
    """
    if mesh.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError as error:
        raise MissingDependencyError(
            f"several processes need deepspeed, which cannot be imported ({error}).",
            fix="pip install deepspeed, or set parallel.zero_stage=0.",
        ) from error
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.WARNING)
    logger.addFilter(_is_news)
    warnings.filterwarnings("ignore", message=".*(all_gather_into|reduce_scatter)_tensor. is deprecated")  # DeepSpeed's own calls
    if mesh.device.type == "cpu":
        # Otherwise it compiles a C++ extension on first use (most of a minute, and a compiler is needed) that training never calls.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if mesh.device.type == "cuda" else "gloo", verbose=False)
    return deepspeed


def _is_news(record: logging.LogRecord) -> bool:
    return "untested optimizer" not in record.getMessage()  # it is asked for in engine_config, and tested here


def engine_config(trained: list[TrainedParameter], parallel: ParallelSection, *, pin_memory: bool = False) -> dict[str, Any]:
    """DeepSpeed's configuration. Learning rate, clipping and accumulation are set from outside at every step.

    Reductions of gradients do not overlap with the backward pass (``overlap_comm``): they would run beside the experts' exchange, in
    another NCCL communicator and on another stream, whose order on the devices nobody guarantees; that was never tried on several GPUs.

    Args:
        trained: the parameters.
        parallel: ZeRO's stage, and what lies on the CPU. Offloaded state is updated by torch's AdamW there, because DeepSpeed's own
            is compiled at the first use.
        pin_memory: keep what is offloaded in page-locked memory, which a GPU reads faster; without a GPU there is none.

    Raises:
        ParallelError: trained parameters have several types, or one that DeepSpeed cannot train.
    """
    dtypes = {item.parameter.dtype for item in trained}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.bfloat16}:
        raise ParallelError(
            f"trained parameters have the types {', '.join(sorted(map(str, dtypes)))}.",
            key="model.dtype",
            fix="train in float32 or in bfloat16 throughout.",
        )
    elements = min(MAX_BUCKET_ELEMENTS, sum(item.parameter.numel() for item in trained))
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": parallel.zero_stage,
            "reduce_bucket_size": elements,
            "overlap_comm": False,
            "contiguous_gradients": True,
        },
    }
    on_cpu = {"device": "cpu", "pin_memory": pin_memory}
    if parallel.offload_optimizer == "cpu":
        config["zero_optimization"]["offload_optimizer"] = on_cpu
        config["zero_force_ds_cpu_optimizer"] = False
    if parallel.offload_parameters == "cpu":
        config["zero_optimization"]["offload_param"] = dict(on_cpu)
    if dtypes == {torch.bfloat16}:
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        if parallel.zero_stage < 3:
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def optimizer_groups(trained: list[TrainedParameter], group_name: str | None) -> list[dict[str, Any]]:
    """Parameter groups: replicated and sharded parameters apart, each decayed or not; ``group_name`` is that of the sharded ones."""
    groups: list[dict[str, Any]] = []
    for sharded in (False, True):
        for decays in (True, False):
            parameters = [item.parameter for item in trained if item.sharded == sharded and item.decays == decays]
            group: dict[str, Any] = {"params": parameters, "decays": decays, "name": "replicated"}
            if sharded:
                group |= {"name": group_name, "moe": True}
            groups.append(group)
    return groups


def _mark_experts(model: nn.Module, trained: list[TrainedParameter], mesh: Mesh, *, zero_stage: int) -> str:
    from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
    from deepspeed.utils import groups

    class Marker(AutoEPMoELayer):
        """Holds nothing and computes nothing; its class alone makes the engine treat groups with ``moe: True`` as experts."""

        def __init__(self, num_experts: int) -> None:
            nn.Module.__init__(self)
            self.num_experts = num_experts

        def set_deepspeed_parallelism(self, *_args: Any, **_kwargs: Any) -> None:
            pass

    size = mesh.expert_parallel_size
    name = f"ep_size_{size}"
    if name not in groups._get_expert_data_parallel_group_dict():
        groups._create_expert_and_data_parallel(size)
    experts = expert_parameters(model)
    for parameter in experts.values():
        attributes: dict[str, Any] = {"allreduce": False, "group_name": name}
        if zero_stage == 3:
            attributes["ds_zero_placement_family"] = "autoep_expert"
            attributes["ds_zero_partition_group_name"] = name
            attributes["ds_zero_partition_process_group"] = groups._get_expert_data_parallel_group(name)
        for key, value in attributes.items():
            setattr(parameter, key, value)
    if zero_stage < 3 and any(item.sharded for item in trained):  # with frozen experts there is no group for the engine to look for
        num_experts = next(iter(experts.values())).shape[0] * size
        model.add_module(MARKER_NAME, Marker(num_experts))
    return name
