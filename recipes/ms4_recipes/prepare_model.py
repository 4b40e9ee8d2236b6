"""The model of a training run: read from any layout, with what will be trained unfrozen or attached, on this rank's device.

Exercise it: ``pytest tests/recipes/ms4_recipes/test_prepare_model.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ms4_train.adapters import AttachReport, attach, attach_report, load_adapter
from ms4_train.config.schema import AdapterSection, SftRun
from ms4_train.errors import AdapterError, ConfigError
from ms4_train.model import Mistral4ForCausalLM
from ms4_train.parallel import Mesh
from ms4_train.weights import load_model, open_checkpoint, read_config
from ms4_train.weights.reading.base_weights import base_weights_line


@dataclass(frozen=True)
class PreparedModel:
    """The model, its adapter's section and report where it has one, and how quantised base weights are held, in words."""

    model: Mistral4ForCausalLM
    adapter: AdapterSection | None
    attached: AttachReport | None
    base_weights: str | None


def prepare_model(config: SftRun, mesh: Mesh, base: str) -> PreparedModel:
    """Read the model and make ready what will be trained.

    With expert parallelism only this rank's experts are read. Quantised weights stay quantised under an adapter, where they are frozen.

    Args:
        config: of the run.
        mesh: of the processes.
        base: fingerprint of the base model.

    Raises:
        WeightsError: the model's files.
        AdapterError: a target that matches nothing, or an adapter of another model.
        ConfigError: a router that would be trained and then lost, or quantised weights that would have to be trained.
    """
    section, adapter, train_router = config.model, config.adapter, config.training.train_router
    if section.adapter is not None:
        raise ConfigError(
            "training on top of another adapter is not possible.",
            key="model.adapter",
            fix="go on training it with adapter.init_from, or merge it first (`ms4 model merge`).",
        )
    if adapter is not None and train_router:
        raise ConfigError(
            "an adapter file cannot hold a fully trained router.", key="training.train_router", fix="leave it out, or train the full model."
        )
    layout = open_checkpoint(section.path).layout
    dequantise = section.dequantizes(default=adapter is None)
    if adapter is None and not dequantise and layout.encoding != "plain":
        raise ConfigError(
            f"is false, but without an adapter every weight is trained, and {layout.encoding.upper()} codes cannot be.",
            key="model.dequantize",
            fix="leave it out, or add an adapter section.",
        )
    expert_range = None
    if mesh.expert_parallel_size > 1:
        expert_range = mesh.expert_range(read_config(section.path).n_routed_experts)
    model = load_model(
        section.path,
        dtype=getattr(torch, section.dtype),
        softmax_scale=section.softmax_scale,
        experts_backend=section.experts_backend,
        expert_range=expert_range,
        dequantise=dequantise,
    )
    base_weights = base_weights_line(layout, model)
    attached = None
    if adapter is not None and adapter.init_from is not None:
        adapter = go_on_with_adapter(model, adapter, base)
        attached = attach_report(model, adapter)
    elif adapter is not None:
        attached = attach(model, adapter)
    elif train_router is False:
        for name, parameter in model.named_parameters():
            if name.endswith("mlp.gate.weight"):
                parameter.requires_grad_(False)
    model.gradient_checkpointing = config.training.gradient_checkpointing
    model.recompute_experts = config.training.recompute_experts
    return PreparedModel(model.to(mesh.device), adapter, attached, base_weights)


def go_on_with_adapter(model: Mistral4ForCausalLM, section: AdapterSection, base: str) -> AdapterSection:
    """Load the adapter that is to be trained further; its file decides rank and targets.

    Raises:
        AdapterError: it belongs to another model, or the configuration asks for something else than the file holds.
    """
    assert section.init_from is not None
    stored = load_adapter(model, section.init_from, trainable=True, base_fingerprint=base)
    for key in section.model_fields_set - {"init_from"}:
        asked, found = getattr(section, key), getattr(stored, key)
        if (sorted(asked) if isinstance(asked, list) else asked) != (sorted(found) if isinstance(found, list) else found):
            raise AdapterError(
                f"is {asked!r}, but the adapter to go on with has {found!r}.",
                file=section.init_from,
                key=f"adapter.{key}",
                fix="remove the key.",
            )
    return stored
