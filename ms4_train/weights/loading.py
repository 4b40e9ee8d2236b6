"""A checkpoint folder -> a model with its weights.

The model is built without memory, then each tensor is read, cast and put in place, so that the peak is the model plus one tensor. With
expert parallelism each process reads its own experts only. Exercise it: ``pytest tests/ms4_train/weights/test_loading.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ms4_train.model import Mistral4Experts, Mistral4ForCausalLM, TextConfig
from ms4_train.weights.model_config import read_config
from ms4_train.weights.names import is_expert_stack
from ms4_train.weights.reader import check_tensors, read_tensors, scan_checkpoint, warn_of_vision


def load_model(
    folder: str | Path,
    *,
    dtype: torch.dtype,
    softmax_scale: Literal["auto", "plain", "mscale"] = "auto",
    experts_backend: Literal["auto", "reference", "cpu"] = "auto",
    expert_range: tuple[int, int] | None = None,
) -> Mistral4ForCausalLM:
    """Read a Hugging Face checkpoint (one file or shards, text or multimodal names) into a model on the CPU.

    Vision tensors are left out, with one warning that counts them.

    Args:
        folder: holds ``config.json`` and safetensors files.
        dtype: type of the parameters.
        softmax_scale: see ``read_config``.
        experts_backend: implementation of the experts operation.
        expert_range: read only experts [a, b) of each stack; the model then holds those alone, and needs an exchange to run.

    Raises:
        WeightsError: the configuration or a tensor is missing, unexpected, misshapen or unreadable.
        UntrustedInputError: a file is cut off or damaged.
    """
    config = read_config(folder, softmax_scale=softmax_scale)
    checkpoint = scan_checkpoint(folder)
    model = empty_model(config, experts_backend)
    check_tensors(checkpoint, expected_shapes(config, model))
    warn_of_vision(checkpoint)
    ranges: dict[str, tuple[int, int]] = {}
    if expert_range is not None:
        assert 0 <= expert_range[0] < expert_range[1] <= config.n_routed_experts, expert_range
        ranges = {name: expert_range for name in checkpoint.tensors if is_expert_stack(name)}
    for name, tensor in read_tensors(checkpoint, ranges, dtype=dtype):
        put_parameter(model, name, tensor)
    if expert_range is not None:
        for module in model.modules():
            if isinstance(module, Mistral4Experts):
                set_first_expert(module, expert_range[0])
    return model


def empty_model(config: TextConfig, experts_backend: Literal["auto", "reference", "cpu"] = "auto") -> Mistral4ForCausalLM:
    """A model on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return Mistral4ForCausalLM(config, experts_backend=experts_backend)


def expected_shapes(config: TextConfig, model: nn.Module | None = None) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every full tensor that a checkpoint of ``config`` holds."""
    model = model if model is not None else empty_model(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def put_parameter(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a parameter by a new one that holds ``tensor``."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor))


def first_expert(experts: nn.Module) -> int:
    """The number, in the whole layer, of the first expert that a partially loaded module holds; 0 for a whole one."""
    return getattr(experts, "first_local_expert", 0)


def set_first_expert(experts: nn.Module, index: int) -> None:
    """Record which expert of the whole layer is the first one held."""
    experts.first_local_expert = index  # type: ignore[assignment]
