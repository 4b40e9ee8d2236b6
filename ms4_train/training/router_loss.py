"""Losses of the routers beside the main one: load balancing (Switch; as transformers has it for Mixtral) and z (mean squared logsumexp).

Both are means over the step's tokens, averaged over layers. In the balancing loss a token's experts are counted over all ranks of its micro
batch, so that a step does not depend on how its rows lie on ranks; micro batches are balanced each on its own and weigh as many tokens as
they have. Exercise it: ``pytest tests/ms4_train/training/test_router_loss.py``.

Shape suffixes: l layers, e experts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ms4_train.config.schema import TrainingSection
from ms4_train.errors import ConfigError
from ms4_train.model import Mistral4ForCausalLM
from ms4_train.model.moe import Mistral4Router
from ms4_train.model.router_terms import RouterRecorder
from ms4_train.parallel import Mesh

_LOG = logging.getLogger(__name__)


class RouterLosses:
    """The router losses of the steps of one run. With both coefficients zero nothing is recorded, computed or logged.

    Args:
        model: its routers get a recorder where a coefficient is not zero.
        section: holds the coefficients.
        mesh: of the processes.
    """

    def __init__(self, model: Mistral4ForCausalLM, section: TrainingSection, mesh: Mesh) -> None:
        self._mesh = mesh
        self._num_experts, self._top_k = model.config.n_routed_experts, model.config.num_experts_per_tok
        self._balance, self._z = section.router_aux_loss_coef, section.router_z_loss_coef
        self._recorder = None
        if self._balance or self._z:
            self._recorder = RouterRecorder(probabilities=self._balance > 0, squared_z=self._z > 0)
        for router in routers(model):
            router.recorder = self._recorder
        self._balance_sum: Tensor | float = 0.0
        self._z_sum: Tensor | float = 0.0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Around the forward pass of a micro batch."""
        if self._recorder is None:
            yield
            return
        with self._recorder.recording():
            yield

    def of_micro_batch(self, counts: Sequence[Tensor], step_tokens: float) -> Tensor | float:
        """This rank's share of the losses, times their coefficients, to be added to its share of the main loss. Collective.

        Args:
            counts: ``model.expert_counts()`` of the forward pass that was recorded.
            step_tokens: tokens of the whole step, over all micro batches and ranks.
        """
        if self._recorder is None:
            return 0.0
        total: Tensor | float = 0.0
        if self._recorder.probabilities:
            probability_le = torch.stack(self._recorder.probabilities)
            counts_le = self._mesh.all_reduce_sum(torch.stack(list(counts))).to(probability_le.dtype)
            tokens = (counts_le.sum(dim=1, keepdim=True) / self._top_k).clamp(min=1)
            balance = self._num_experts * (counts_le / tokens * probability_le).sum(dim=1).mean() / max(step_tokens, 1.0)
            self._balance_sum += balance.detach()
            total = total + self._balance * balance
        if self._recorder.squared_z:
            z = torch.stack(self._recorder.squared_z).mean() / max(step_tokens, 1.0)
            self._z_sum += z.detach()
            total = total + self._z * z
        self._recorder.clear()
        return total

    def take_metrics(self) -> dict[str, float]:
        """The losses of the step, without coefficients, over all ranks; starts again. Collective."""
        metrics = {}
        if self._balance:
            metrics["router_aux_loss"] = self._mesh.all_reduce_sum(float(self._balance_sum))
        if self._z:
            metrics["router_z_loss"] = self._mesh.all_reduce_sum(float(self._z_sum))
        self._balance_sum = self._z_sum = 0.0
        return metrics


def routers(model: nn.Module) -> Iterator[Mistral4Router]:
    """The routers, in the order of the layers."""
    return (module for module in model.modules() if isinstance(module, Mistral4Router))


def check_router_losses(model: Mistral4ForCausalLM, section: TrainingSection) -> None:
    """Refuse router losses that could change nothing; warn where they reach everything but the routers.

    Args:
        model: frozen and adapted as it will be trained.
        section: holds the coefficients.

    Raises:
        ConfigError: no trained parameter is, or comes before, a router.
    """
    keys = [key for key in ("router_aux_loss_coef", "router_z_loss_coef") if getattr(section, key)]
    if not keys:
        return
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if any(".mlp.gate." in name for name in trained):
        return
    last = f"model.layers.{model.config.num_hidden_layers - 1}.mlp."
    if all(name.startswith(("lm_head", "model.norm.", last)) for name in trained):
        raise ConfigError(
            "the loss would change nothing: no trained parameter is, or comes before, a router.",
            key=f"training.{keys[0]}",
            fix="set training.train_router: true, or leave the coefficient out.",
        )
    _LOG.warning("the routers are frozen: training.%s acts only on what comes before them.", " and training.".join(keys))
