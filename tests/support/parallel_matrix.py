"""The parity matrix: ten steps of the same rows on ranks and in one process that knows nothing of ranks, and how far apart they are.

The one process is the model, torch's autograd, torch's ``AdamW`` and ``clip_grad_norm_``, over the rows of all ranks laid in a row. It is
run once per kind of training; every mesh, ZeRO stage and variation is held against it: the loss of the first step, every gradient
of it (of stacked experts: every expert's), the chosen experts of every token at every step, losses, norms, and weights and moments at last.

What makes it hard: documents of uneven lengths packed together, other lengths on every rank; a rank with one token; a rank without a
trained token; and routers that are skewed on purpose. All tokens of the last layer choose among two experts, so that every rank
but the first receives nothing there; in the layer before, two experts take most of the pairs; the first layer is left as it is.

Shape suffixes: t tokens, k experts per token, e experts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from support.models import tiny_config, tiny_model
from support.parallel_runs import LEARNING_RATE, MAX_GRAD_NORM, TRAINING, Rows, full_gradients, loss_sum, randomise_adapters
from support.quantised_models import dequantised_twin, quantised_tiny
from torch import Tensor, nn

from ms4_train.adapters import attach
from ms4_train.config.schema import AdapterSection
from ms4_train.model import Mistral4ForCausalLM
from ms4_train.parallel import TrainEngine

STEPS = 10
LAYERS, EXPERTS, VOCABULARY = 3, 8, 61
ADAPTER = AdapterSection(
    r=3,
    lora_alpha=6.0,
    target_modules=[
        *("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
        *(f"mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")),
    ],
    target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"],
)
"""Attention, shared expert, stacked experts and router."""


@dataclass(frozen=True)
class Training:
    """What is trained, apart from how it is laid over ranks: all runs of one ``Training`` must agree.

    Attributes:
        lora: adapters of :data:`ADAPTER` over frozen weights; else every parameter, routers too.
        quantised: frozen weights are FP8. The one process has them as plain weights of the same values.
        micro_batches: of each step and rank.
        bf16: weights; every token then goes to all experts, because rounding would change choices. The one process has the same weights
            in fp32.
        steps: optimizer steps.
    """

    lora: bool = False
    quantised: bool = False
    micro_batches: int = 1
    bf16: bool = False
    steps: int = STEPS


FULL, LORA = Training(), Training(lora=True)


@dataclass(frozen=True)
class Case:
    """One way of running a training on ranks. ``section`` holds keys of ``parallel:``."""

    training: Training
    section: dict[str, Any] = field(default_factory=dict)
    recompute: bool = False


CORE = {
    f"stage_{stage}_{name}": Case(training, {"zero_stage": stage})
    for stage in (1, 2, 3)
    for name, training in (("full", FULL), ("lora", LORA))
}
VARIATIONS = {
    "recomputed_full": Case(FULL, {"zero_stage": 2}, recompute=True),
    "recomputed_stage_3_lora": Case(LORA, {"zero_stage": 3}, recompute=True),
    "accumulated_full": Case(dataclasses.replace(FULL, micro_batches=2), {"zero_stage": 3}),
    "accumulated_lora": Case(dataclasses.replace(LORA, micro_batches=2), {"zero_stage": 1}),
    "quantised_lora": Case(dataclasses.replace(LORA, quantised=True), {"zero_stage": 2}),
    "quantised_stage_3_lora": Case(dataclasses.replace(LORA, quantised=True), {"zero_stage": 3}, recompute=True),
    **{f"bf16_stage_{stage}_full": Case(Training(bf16=True, steps=2), {"zero_stage": stage}) for stage in (1, 2, 3)},
    "bf16_lora": Case(Training(lora=True, bf16=True, steps=2), {"zero_stage": 3}),
}
CASES = CORE | VARIATIONS
CONTROLS = ("permuted_experts", "dropped_rank")
"""Runs that must not agree: rank 1 has its experts in another order; the gradient of rank 1 is lost."""


def matrix_model(training: Training) -> Mistral4ForCausalLM:
    """The model with all its experts, as every rank begins with it."""
    config = tiny_config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=LAYERS,
        n_routed_experts=EXPERTS,
        num_experts_per_tok=EXPERTS if training.bf16 else 2,
    )
    model = quantised_tiny("fp8", config) if training.quantised else tiny_model(config)
    _skew(model)
    model.train()
    if training.lora:
        attach(model, ADAPTER)
        randomise_adapters(model)
    return model.to(torch.bfloat16) if training.bf16 else model


@torch.no_grad()
def _skew(model: Mistral4ForCausalLM) -> None:
    """One channel is the same in all tokens, no layer adds to it, and the routers of all layers but the first listen to it."""
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):  # random, so that no two gradients are alike
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
        elif name.endswith(("o_proj.weight", "shared_experts.down_proj.weight")):
            parameter[0] = 0
        elif name.endswith("experts.down_proj"):
            parameter[:, 0] = 0
    model.model.embed_tokens.weight[:, 0] = 0.5
    preferred_e = torch.tensor([1.0, 1.0] + [-1.0] * (EXPERTS - 2))
    for layer, strength in enumerate((0.0, 0.5, 8.0)):
        model.model.layers[layer].mlp.gate.weight[:, 0] = strength * preferred_e  # type: ignore[union-attr]


def matrix_rows(step: int, micro_batch: int, rank: int) -> Rows:
    """Deterministic rows. Rank 1 has a single token in every third step, and in the step after that no trained one."""
    generator = torch.Generator().manual_seed(7000 * step + 10 * micro_batch + rank)
    lengths = [(7, 4, 2), (5, 1, 3), (11,), (2, 2, 6, 1)][rank % 4]
    if rank == 1 and step % 3 == 1:
        lengths = (1,)
    ids_t, target_t = torch.randint(VOCABULARY, (2, sum(lengths)), generator=generator)
    target_t[torch.rand(len(target_t), generator=generator) < 0.3] = -100
    if rank == 1 and step % 3 == 2:
        target_t[:] = -100
    return Rows(ids_t, target_t, lengths)


@dataclass
class Recorded:
    """What a run did.

    Attributes:
        losses: of each step, over all ranks.
        norms: of the gradient before clipping, of each step.
        choices: chosen experts, ``step/micro batch/rank`` -> int64 [layers, t, k].
        gradients: of the first step, before clipping, whole tensors.
        state: at the end, parameter -> ``weight``, ``exp_avg``, ``exp_avg_sq``, whole tensors; empty where nobody looks at it.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    choices: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """As one flat file."""
        found = {f"choices/{key}": value for key, value in self.choices.items()}
        found |= {f"gradients/{key}": value for key, value in self.gradients.items()}
        found |= {f"state/{kind}/{name}": value for name, state in self.state.items() for kind, value in state.items()}
        found |= {"losses": torch.tensor(self.losses, dtype=torch.float64), "norms": torch.tensor(self.norms, dtype=torch.float64)}
        return {key: value.detach().clone().contiguous() for key, value in found.items()}

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Recorded:
        """From :meth:`tensors`."""
        recorded = cls(tensors["losses"].tolist(), tensors["norms"].tolist())
        for key, value in tensors.items():
            head, _, rest = key.partition("/")
            if head == "state":
                kind, _, name = rest.partition("/")
                recorded.state.setdefault(name, {})[kind] = value
            elif rest:
                getattr(recorded, head)[rest] = value
        return recorded


def one_process(training: Training, world_size: int) -> Recorded:
    """The run that all others must equal: the rows of ``world_size`` ranks in one packed row, torch's own optimizer."""
    model = _plain_model(training)
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups = [
        {"params": [parameter for parameter in named.values() if (parameter.ndim >= 2) == decays], "weight_decay": decay}
        for decays, decay in ((True, TRAINING.weight_decay), (False, 0.0))
    ]
    betas = (TRAINING.adam_beta1, TRAINING.adam_beta2)
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=LEARNING_RATE, betas=betas, eps=TRAINING.adam_epsilon)
    recorded = Recorded()
    for step in range(training.steps):
        trained = trained_tokens(training, world_size, step)
        total = 0.0
        for micro in range(training.micro_batches):
            parts = [matrix_rows(step, micro, rank) for rank in range(world_size)]
            with choices(model) as chosen:
                loss = loss_sum(model, joined(parts)) / trained
            ends = [part.input_ids_t.numel() for part in parts]
            for rank, own in enumerate(torch.stack(chosen).split(ends, dim=1)):
                recorded.choices[f"{step}/{micro}/{rank}"] = own.contiguous()
            loss.backward()
            total += loss.item()
        for parameter in named.values():  # a parameter that nothing reached counts as one with gradient zero
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if step == 0:
            recorded.gradients = {name: parameter.grad.clone() for name, parameter in named.items() if parameter.grad is not None}
        recorded.losses.append(total)
        recorded.norms.append(nn.utils.clip_grad_norm_(named.values(), MAX_GRAD_NORM).item())
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in named.items():
        moments = {kind: optimizer.state[parameter][kind] for kind in ("exp_avg", "exp_avg_sq")}
        recorded.state[name] = {"weight": parameter.detach(), **moments}
    return recorded


def _plain_model(training: Training) -> Mistral4ForCausalLM:
    """The same values in fp32 parameters."""
    if not training.quantised:
        return matrix_model(training).float()
    model = dequantised_twin(matrix_model(dataclasses.replace(training, lora=False)))
    attach(model, ADAPTER)
    randomise_adapters(model)
    return model


def on_ranks(
    engine: TrainEngine, model: Mistral4ForCausalLM, training: Training, *, steps: int | None = None, share: float = 1.0
) -> Recorded:
    """The same through an engine, with the rows of this rank. ``share`` multiplies this rank's loss, which a control makes zero."""
    mesh = engine.mesh
    recorded = Recorded()
    for step in range(training.steps if steps is None else steps):
        trained = trained_tokens(training, mesh.world_size, step)
        total = 0.0
        for micro in range(training.micro_batches):
            with choices(model) as chosen:
                loss = loss_sum(model, matrix_rows(step, micro, mesh.rank)) / trained
            recorded.choices[f"{step}/{micro}/{mesh.rank}"] = torch.stack(chosen)
            engine.backward(loss * share, is_last_micro_batch=micro == training.micro_batches - 1)
            total += loss.item()
        if step == 0:
            recorded.gradients = full_gradients(engine, model)
        recorded.losses.append(mesh.all_reduce_sum(total))
        recorded.norms.append(engine.step(LEARNING_RATE, MAX_GRAD_NORM))
    return recorded


def trained_tokens(training: Training, world_size: int, step: int) -> int:
    """Tokens with a loss in one step, over all ranks and micro batches."""
    rows = [matrix_rows(step, micro, rank) for micro in range(training.micro_batches) for rank in range(world_size)]
    return sum(int((part.target_ids_t != -100).sum()) for part in rows)


def joined(parts: list[Rows]) -> Rows:
    """Several rows as one packed row."""
    ids_t, target_t = (torch.cat([getattr(part, name) for part in parts]) for name in ("input_ids_t", "target_ids_t"))
    return Rows(ids_t, target_t, tuple(length for part in parts for length in part.lengths))


@contextmanager
def choices(model: Mistral4ForCausalLM) -> Iterator[list[Tensor]]:
    """The experts that each layer's router chooses inside the ``with``, [t, k] per layer in order."""
    chosen: list[Tensor] = []

    def look(_module: nn.Module, _arguments: object, output: tuple[Tensor, Tensor]) -> None:
        chosen.append(output[1].detach().sort(dim=1).values)

    hooks = [layer.mlp.gate.register_forward_hook(look) for layer in model.model.layers]  # type: ignore[union-attr]
    try:
        yield chosen
    finally:
        for hook in hooks:
            hook.remove()


def apart(run: Recorded, expected: Recorded) -> dict[str, Any]:
    """How far a run, perhaps a shorter one, is from the one process.

    Returns:
        ``first_loss`` absolute; ``loss`` and ``norm`` relative, the largest of all steps; ``gradient`` and ``state`` relative, the largest
        of all parameters and experts; ``worst``, the name of that gradient; ``factor``, what all gradients are times those expected,
        least and largest; ``flips``, how many tokens' choices differ, out of ``choices``.
    """
    steps = len(run.losses)
    assert 0 < steps <= len(expected.losses)
    assert run.gradients.keys() == expected.gradients.keys()
    errors = {name: relative_error(gradient, expected.gradients[name]) for name, gradient in run.gradients.items()}
    factors = [_factor(gradient, expected.gradients[name]) for name, gradient in run.gradients.items()]
    found: dict[str, Any] = {
        "steps": steps,
        "parameters": len(errors),
        "first_loss": abs(run.losses[0] - expected.losses[0]),
        "loss": max(abs(own / other - 1) for own, other in zip(run.losses, expected.losses, strict=False)),
        "norm": max(abs(own / other - 1) for own, other in zip(run.norms, expected.norms, strict=False)),
        "gradient": max(errors.values()),
        "worst": max(errors, key=lambda name: errors[name]),
        "factor": [min(factors), max(factors)],
        "flips": sum(int((own != expected.choices[key]).any(2).sum()) for key, own in run.choices.items()),
        "choices": sum(own[..., 0].numel() for own in run.choices.values()),
    }
    if run.state:
        assert run.state.keys() == expected.state.keys()
        found["state"] = max(
            relative_error(run.state[name][kind], whole) for name, state in expected.state.items() for kind, whole in state.items()
        )
    return found


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Largest difference in units of the largest expected value; of stacks of experts, the largest of that over experts.

    Where all expected values are zero, any difference is infinite.
    """
    value, expected = value.double(), expected.double()
    slices = expected.shape[0] if expected.ndim == 3 else 1
    difference_e = (value - expected).reshape(slices, -1).abs().amax(1)
    scale_e = expected.reshape(slices, -1).abs().amax(1)
    return torch.where(difference_e == 0, 0.0, difference_e / scale_e).max().item()


def _factor(value: Tensor, expected: Tensor) -> float:
    value, expected = value.double(), expected.double()
    return ((value * expected).sum() / expected.square().sum()).item()
