"""Router losses against transformers' function and explicit formulas; the same over micro batches, ranks and recomputation."""

from __future__ import annotations

import logging

import pytest
import torch
from support.models import tiny_config, tiny_model
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from ms4_train.adapters import attach
from ms4_train.config.schema import AdapterSection, TrainingSection
from ms4_train.data import PackedBatch
from ms4_train.errors import ConfigError
from ms4_train.model import SequenceLayout
from ms4_train.parallel import Mesh
from ms4_train.parallel.local import LocalEngine
from ms4_train.training import FlopCounter, Speedometer, TrainingRun
from ms4_train.training.loop import forward_backward
from ms4_train.training.router_loss import RouterLosses, check_router_losses

AUX, Z = 0.7, 0.3  # large, so that a wrong factor shows beside the main loss
CONFIG = tiny_config(num_hidden_layers=3)
LENGTHS = [(6, 4), (3,), (5, 2, 2)]


def batch(seed, lengths, masked=False):
    ids_t = torch.randint(0, CONFIG.vocab_size, (sum(lengths),), generator=torch.Generator().manual_seed(seed))
    targets_t = torch.full_like(ids_t, -100) if masked else ids_t.roll(-1)
    return PackedBatch(ids_t, targets_t, lengths, [str(seed)] * len(lengths), 0 if masked else sum(lengths))


BATCHES = [batch(number, lengths, masked=number == 1) for number, lengths in enumerate(LENGTHS)]


def make_run(*, checkpointing=False, **keys):
    model = tiny_model(CONFIG).train()
    model.gradient_checkpointing = checkpointing
    section = TrainingSection(train_router=True, **keys)
    return TrainingRun(
        section=section,
        engine=LocalEngine(model, Mesh(), training=section),
        model=model,
        loader=None,
        eval_batches=[],
        tracker=None,
        total_steps=1,
        epoch_steps=0,
        flops=FlopCounter.of_model(model),
        speed=Speedometer(None),
        saver=None,
    )


def logits_by_hook(model, item):
    """(hidden states, router logits of each layer), with gradient."""
    logits = []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda gate, inputs, _: logits.append(inputs[0] @ gate.weight.t()))
        for layer in model.model.layers
    ]
    hidden_td = model(item.input_ids_t, SequenceLayout.from_lengths(item.lengths))
    for hook in hooks:
        hook.remove()
    return hidden_td, logits


def expected_losses(model, batches, aux, z):
    """(main loss, balancing loss, z loss) of a step by transformers' function, layer by layer, and explicit formulas, with gradient."""
    tokens, trained = sum(len(item.input_ids_t) for item in batches), sum(item.num_trained for item in batches)
    main = balance = squared = torch.zeros(())
    for item in batches:
        hidden_td, logits = logits_by_hook(model, item)
        main = main + torch.nn.functional.cross_entropy(model.logits(hidden_td), item.target_ids_t, reduction="sum") / trained
        for logits_te in logits:
            weight = len(item.input_ids_t) / tokens / len(logits)
            layer = load_balancing_loss_func((logits_te,), CONFIG.n_routed_experts, CONFIG.num_experts_per_tok)
            balance = balance + weight * layer
            squared = squared + logits_te.logsumexp(-1).square().sum() / tokens / len(logits)
    return main, balance, squared


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("aux", "z"), [(AUX, Z), (AUX, 0.0), (0.0, Z), (0.0, 0.0)])
def test_gradients_and_metrics_equal_the_explicit_formulas(aux, z, checkpointing):
    run = make_run(router_aux_loss_coef=aux, router_z_loss_coef=z, checkpointing=checkpointing)
    result = forward_backward(run, BATCHES)
    ours = {name: parameter.grad.clone() for name, parameter in run.model.named_parameters()}
    model = tiny_model(CONFIG).train()
    main, balance, squared = expected_losses(model, BATCHES, aux, z)
    (main + aux * balance + z * squared).backward()
    assert result.loss == pytest.approx(float(main.detach()), rel=1e-5)
    expected = {"router_aux_loss": float(balance.detach())} if aux else {}
    expected |= {"router_z_loss": float(squared.detach())} if z else {}
    assert result.router == pytest.approx(expected, rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)  # fp32, sums in another order


def test_control_a_coefficient_changes_the_router_s_gradient():
    """What the comparison above would miss if it were too loose."""
    gradients = []
    for keys in ({}, {"router_aux_loss_coef": 0.01}, {"router_z_loss_coef": 0.01}):
        run = make_run(**keys)
        forward_backward(run, BATCHES)
        gradients.append(run.model.model.layers[1].mlp.gate.weight.grad)
    assert all(not torch.allclose(gradients[0], other, rtol=1e-4, atol=1e-6) for other in gradients[1:])


class Ranks(Mesh):
    """One rank of several, whose sums over ranks were worked out before: the counts of all of them."""

    def __init__(self, totals):
        super().__init__()
        object.__setattr__(self, "totals", totals)

    def all_reduce_sum(self, value):
        return self.totals if isinstance(value, torch.Tensor) else value


def test_ranks_give_what_one_rank_with_all_rows_gives():
    """Experts are counted over all ranks: two ranks with a batch each are one rank with both in one batch."""
    section = TrainingSection(train_router=True, router_aux_loss_coef=AUX, router_z_loss_coef=Z)
    parts = BATCHES[0], BATCHES[2]
    together = PackedBatch(
        torch.cat([part.input_ids_t for part in parts]),
        torch.cat([part.target_ids_t for part in parts]),
        tuple(length for part in parts for length in part.lengths),
        [],
        0,
    )
    tokens = len(together.input_ids_t)

    def share(item, mesh):
        model = tiny_model(CONFIG).train()
        losses = RouterLosses(model, section, mesh)
        with losses.recording():
            model(item.input_ids_t, SequenceLayout.from_lengths(item.lengths))
        loss = losses.of_micro_batch(model.expert_counts(), tokens)
        loss.backward()
        return loss.detach(), torch.stack(model.expert_counts()), [layer.mlp.gate.weight.grad for layer in model.model.layers]

    whole, counts_le, gradients = share(together, Mesh())
    shares = [share(part, Ranks(counts_le)) for part in parts]
    torch.testing.assert_close(sum(loss for loss, _, _ in shares), whole, rtol=1e-5, atol=1e-7)
    for layer, gradient in enumerate(gradients):
        torch.testing.assert_close(sum(found[layer] for _, _, found in shares), gradient, rtol=1e-4, atol=1e-6)
    alone = [share(part, Mesh()) for part in parts]  # control: each rank balanced on its own is another loss
    assert abs(float(sum(loss for loss, _, _ in alone) - whole)) > 1e-3


def test_even_routing_gives_the_number_of_experts_per_token():
    """The floor of the balancing loss, which users compare the logged number with."""
    model = tiny_model(CONFIG).train()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.mul_(1e-6)
    losses = RouterLosses(model, TrainingSection(router_aux_loss_coef=1.0), Mesh())
    with losses.recording():
        model(BATCHES[0].input_ids_t, SequenceLayout.from_lengths(BATCHES[0].lengths))
    losses.of_micro_batch(model.expert_counts(), 10)
    assert losses.take_metrics()["router_aux_loss"] == pytest.approx(CONFIG.num_experts_per_tok, rel=1e-3)
    assert losses.take_metrics()["router_aux_loss"] == 0.0


def test_zero_coefficients_record_nothing():
    run = make_run()
    assert {layer.mlp.gate.recorder for layer in run.model.model.layers} == {None}
    with run.router_losses.recording():
        run.model(BATCHES[0].input_ids_t, SequenceLayout.from_lengths(BATCHES[0].lengths))
    assert run.router_losses.of_micro_batch(run.model.expert_counts(), 10) == 0.0
    assert run.router_losses.take_metrics() == {}


def adapted(*modules):
    model = tiny_model(CONFIG)
    attach(model, AdapterSection(r=2, target_modules=list(modules)))
    return model


def only(*endings):
    model = tiny_model(CONFIG)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(endings))
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tiny_model(CONFIG), None),
        (lambda: only("mlp.gate.weight"), None),
        (lambda: adapted("q_b_proj"), "training.router_z_loss_coef acts only on what comes before them"),
        (lambda: only("layers.0.mlp.experts.down_proj"), "acts only on"),
    ],
)
def test_losses_that_reach_something_pass_and_warn_where_routers_are_frozen(make, words, caplog):
    with caplog.at_level(logging.WARNING):
        check_router_losses(make(), TrainingSection(router_z_loss_coef=0.1))
    assert (words in caplog.text) if words else not caplog.text


@pytest.mark.parametrize("how", ["target_parameters", "modules_to_save"])
def test_an_adapter_on_the_routers_is_trained_by_their_losses(how):
    """The losses see the logits with the adapter: their gradient is that of the explicit formula."""
    model = tiny_model(CONFIG).train()
    keys = {"target_parameters": ["mlp.gate.weight"]} if how == "target_parameters" else {"modules_to_save": ["mlp.gate"]}
    attach(model, AdapterSection(r=2, target_modules=["q_b_proj"], **keys))
    trained = {name: parameter for name, parameter in model.named_parameters() if ".mlp.gate." in name and parameter.requires_grad}
    assert len(trained) == 3 * (2 if how == "target_parameters" else 1)
    generator = torch.Generator().manual_seed(0)
    for parameter in trained.values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    item, layout = BATCHES[0], SequenceLayout.from_lengths(BATCHES[0].lengths)
    losses = RouterLosses(model, TrainingSection(router_z_loss_coef=Z), Mesh())
    with losses.recording():
        model(item.input_ids_t, layout)
    losses.of_micro_batch(model.expert_counts(), 10).backward()
    ours = {name: parameter.grad.clone() for name, parameter in trained.items()}
    model.zero_grad()
    inputs = []
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_pre_hook(lambda gate, given: inputs.append((gate, given[0])))
    model(item.input_ids_t, layout)
    squared = torch.zeros(())
    for gate, hidden_td in inputs:
        weight_ed = gate.changed_weight() if how == "target_parameters" else gate.running.weight
        squared = squared + (hidden_td @ weight_ed.t()).logsumexp(-1).square().sum() / 10 / len(inputs)
    (Z * squared).backward()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, trained[name].grad, rtol=1e-4, atol=1e-7, msg=name)
        assert gradient.abs().max() > 1e-5


@pytest.mark.parametrize(
    "make", [lambda: adapted("layers.2.mlp.shared_experts.up_proj"), lambda: only("lm_head.weight", "model.norm.weight")]
)
def test_losses_that_reach_nothing_are_refused(make):
    with pytest.raises(ConfigError, match=r"training.router_aux_loss_coef: the loss would change nothing.*train_router: true"):
        check_router_losses(make(), TrainingSection(router_aux_loss_coef=0.1))
    check_router_losses(make(), TrainingSection())
