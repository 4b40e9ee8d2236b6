"""What of a model a low-rank pair of a PEFT file can stand on: linear layers, embeddings, routers and stacks of experts, with their sizes.

Exercise it: ``pytest tests/ms4_train/adapters/test_adaptable.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from ms4_train.adapters.adapted import AdaptedModule
from ms4_train.adapters.targets import STACK_NAMES, plain_modules
from ms4_train.adapters.trained_copy import TrainedCopy
from ms4_train.model import Mistral4Experts, TextConfig
from ms4_train.model.moe import Mistral4Router

Kind = Literal["linear", "embedding", "router", "stack"]
STACKS = STACK_NAMES


@dataclass(frozen=True)
class Adaptable:
    """A weight [outputs, inputs], or a stack of ``experts`` of them. An embedding's inputs are tokens, its outputs the width."""

    kind: Kind
    outputs: int
    inputs: int
    experts: int = 1

    def shape_a(self, rank: int) -> tuple[int, ...]:
        """Of A as our parameter, all experts."""
        return (self.experts, rank, self.inputs) if self.kind == "stack" else (rank, self.inputs)

    def shape_b(self, rank: int) -> tuple[int, ...]:
        """Of B as our parameter, all experts."""
        return (self.experts, self.outputs, rank) if self.kind == "stack" else (self.outputs, rank)


def adaptable_parts(model: nn.Module) -> dict[str, Adaptable]:
    """Name -> size, in the order of the model. Routers go by their module, stacks by their own name (``...mlp.experts.down_proj``).

    A model that holds a part of its experts gives the sizes of the whole.
    """
    config = getattr(model, "config", None)
    assert isinstance(config, TextConfig)
    found: dict[str, Adaptable] = {}
    for name, outer in plain_modules(model):
        module = base_module(outer)
        if isinstance(module, Mistral4Experts):
            width, hidden_size, experts = config.moe_intermediate_size, config.hidden_size, config.n_routed_experts
            found[f"{name}.gate_up_proj"] = Adaptable("stack", 2 * width, hidden_size, experts)
            found[f"{name}.down_proj"] = Adaptable("stack", hidden_size, width, experts)
        elif isinstance(module, Mistral4Router):
            found[name] = Adaptable("router", config.n_routed_experts, config.hidden_size)
        elif isinstance(module, nn.Embedding):
            found[name] = Adaptable("embedding", module.embedding_dim, module.num_embeddings)
        elif isinstance(module, nn.Linear):
            found[name] = Adaptable("linear", module.out_features, module.in_features)
    return found


def base_module(module: nn.Module) -> nn.Module:
    """The module of the base, without what adapters put in its place."""
    if isinstance(module, AdaptedModule):
        return module.base_layer
    return module.original_module if isinstance(module, TrainedCopy) else module
