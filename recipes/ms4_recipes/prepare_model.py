"""The model of a training run: read from any layout, with what will be trained unfrozen or attached, on this rank's device.

Exercise it: ``pytest tests/recipes/ms4_recipes/test_prepare_model.py``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import chain

import torch

from ms4_train.adapters import AttachReport, attach, attach_report, load_adapter
from ms4_train.adapters.targets import find_targets
from ms4_train.config.schema import AdapterSection, SftRun
from ms4_train.errors import AdapterError, ConfigError
from ms4_train.model import Mistral3ForConditionalGeneration, Mistral4ForCausalLM
from ms4_train.parallel import Mesh, progress
from ms4_train.parallel.zero3 import sharing_of
from ms4_train.training.router_loss import check_router_losses
from ms4_train.weights import load_model, open_checkpoint, read_config
from ms4_train.weights.layouts.tables import is_vision_name
from ms4_train.weights.reading.base_weights import base_weights_line
from ms4_train.weights.reading.shares import WHOLE, move

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedModel:
    """The model, its adapter's section and report where it has one, and how quantised base weights are held, in words."""

    model: Mistral4ForCausalLM
    adapter: AdapterSection | None
    attached: AttachReport | None
    base_weights: str | None


def prepare_model(config: SftRun, mesh: Mesh, base: str, *, images: bool = True) -> PreparedModel:
    """Read the model and make ready what will be trained.

    With expert parallelism only this rank's experts are read, under ZeRO 3 only its share of each parameter. Quantised weights stay
    quantised under an adapter, where they are frozen; they are not shared out.

    Args:
        config: of the run.
        mesh: of the processes.
        base: fingerprint of the base model.
        images: whether the training rows hold any; without, a full fine-tune leaves the vision as it is.

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
            "beside an adapter, the adapter's section says what is trained.",
            key="training.train_router",
            fix="leave it out; name mlp.gate.weight under adapter.target_parameters (LoRA) or mlp.gate under adapter.modules_to_save.",
        )
    if adapter is not None:
        refuse_spread_dora(config, adapter, mesh)
    if images and section.vision == "skip":
        raise ConfigError("is skip, but the training rows hold images.", key="model.vision", fix="leave it out, or leave these rows out.")
    layout = open_checkpoint(section.path).layout
    dequantise = section.dequantizes(default=adapter is None)
    if adapter is None and not dequantise and layout.encoding != "plain":
        raise ConfigError(
            f"is false, but without an adapter every weight is trained, and {layout.encoding.upper()} codes cannot be.",
            key="model.dequantize",
            fix="leave it out, or add an adapter section.",
        )
    expert_range = mesh.expert_range(read_config(section.path).n_routed_experts) if mesh.expert_parallel_size > 1 else None
    # PiSSA and OLoRA take the adapter out of the whole base weights, so every rank reads all of them first.
    shared = adapter is None or not adapter.changes_base
    model = load_model(
        section.path,
        dtype=getattr(torch, section.dtype),
        softmax_scale=section.softmax_scale,
        experts_backend=section.experts_backend,
        expert_range=expert_range,
        share=sharing_of(mesh, config.parallel.zero_stage) if shared else WHOLE,
        dequantise=dequantise,
        vision=section.vision,
        progress=progress.loaded,
    )
    base_weights = base_weights_line(layout, model)
    attached = None
    if adapter is not None and adapter.init_from is not None:
        adapter = go_on_with_adapter(model, adapter, base)
        refuse_spread_dora(config, adapter, mesh)
        attached = attach_report(model, adapter)
    elif adapter is not None:
        attached = attach(model, adapter)
    elif not train_router:
        for name, parameter in model.named_parameters():
            if name.endswith("mlp.gate.weight"):
                parameter.requires_grad_(False)
    if not images:
        spare_vision(model, is_adapter=adapter is not None)
    elif isinstance(model, Mistral3ForConditionalGeneration):
        model.always_run_vision = mesh.world_size > 1  # a rank may draw text rows alone
    check_router_losses(model, config.training)
    model.gradient_checkpointing = config.training.gradient_checkpointing
    model.recompute_experts = config.training.recompute_experts
    # Under ZeRO 3 the engine moves one parameter at a time: a GPU need not hold all of them.
    move(model, mesh.device, shares_only=mesh.world_size > 1 and config.parallel.zero_stage == 3)
    return PreparedModel(model, adapter, attached, base_weights)


def refuse_spread_dora(config: SftRun, adapter: AdapterSection, mesh: Mesh) -> None:
    """Raise ``ConfigError`` where DoRA would have to see whole base weights that no rank holds."""
    if adapter.use_dora and config.parallel.zero_stage == 3 and mesh.world_size > 1:
        raise ConfigError(
            "DoRA needs whole base weights, which ZeRO 3 spreads over the ranks.",
            key="adapter.use_dora",
            fix="set parallel.zero_stage: 2, or leave use_dora out.",
        )


def spare_vision(model: Mistral4ForCausalLM, *, is_adapter: bool) -> None:
    """Freeze tower and projector: from text they get no gradient, and weight decay alone would shrink them.

    An adapter on them stays as it is, with a warning.

    Raises:
        ConfigError: nothing else is trained.
    """
    trained = [parameter for name, parameter in model.named_parameters() if parameter.requires_grad and is_vision_name(name)]
    if trained and len(trained) == sum(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            "the adapter is on the vision alone, and no training row holds an image: nothing would be learned.",
            key="adapter",
            fix="give rows with images, or choose another preset.",
        )
    if trained and is_adapter:
        _LOG.warning("the training rows hold no images: the adapter's %d tensors on the vision will learn nothing.", len(trained))
    elif trained:
        _LOG.warning("the training rows hold no images: %d vision weights stay as they are.", len(trained))
        for parameter in trained:
            parameter.requires_grad_(False)


def go_on_with_adapter(model: Mistral4ForCausalLM, section: AdapterSection, base: str) -> AdapterSection:
    """Load the adapter that is to be trained further; its file decides rank and targets.

    Raises:
        AdapterError: it belongs to another model, or the configuration asks for something else than the file holds.
    """
    assert section.init_from is not None
    stored = load_adapter(model, section.init_from, trainable=True, base_fingerprint=base)
    for key in sorted(section.model_fields_set - {"init_from", "preset", "exclude_modules"}):
        if not _asks_for_the_same(model, key, section, stored):
            raise AdapterError(
                f"is {getattr(section, key)!r}, but the adapter to go on with has {getattr(stored, key)!r}.",
                file=section.init_from,
                key="adapter.preset" if key.startswith("target_") and section.preset else f"adapter.{key}",
                fix="remove the key.",
            )
    return stored


def _asks_for_the_same(model: Mistral4ForCausalLM, key: str, section: AdapterSection, stored: AdapterSection) -> bool:
    """Whether a key means the same in both sections; targets are compared by what they match, because files may word them otherwise."""
    if key not in ("target_modules", "target_parameters", "modules_to_save"):
        return getattr(section, key) == getattr(stored, key)
    asked, found = (
        find_targets(
            model,
            each.target_modules,
            each.target_parameters,
            exclude_modules=each.exclude_modules,
            modules_to_save=each.modules_to_save if key == "modules_to_save" or "modules_to_save" in section.model_fields_set else (),
        )
        for each in (section, stored)
    )
    names = {"target_modules": "modules", "target_parameters": "parameters", "modules_to_save": "saved"}[key]
    return set(chain(*getattr(asked, names).values())) == set(chain(*getattr(found, names).values()))
