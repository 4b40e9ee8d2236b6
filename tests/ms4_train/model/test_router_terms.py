"""What a recorder keeps of a forward pass: the sums, in the order of the layers, and nothing after it."""

from __future__ import annotations

import gc
import weakref

import torch
from support.models import tiny_config, tiny_model

from ms4_train.model import SequenceLayout
from ms4_train.model.moe import Mistral4Router
from ms4_train.model.router_terms import RouterRecorder

LAYERS = 3


def recorded_model(**wants):
    model = tiny_model(tiny_config(num_hidden_layers=LAYERS)).train()
    recorder = RouterRecorder(**{"probabilities": True, "squared_z": True} | wants)
    for module in model.modules():
        if isinstance(module, Mistral4Router):
            module.recorder = recorder
    return model, recorder


def forward(model):
    ids_t = torch.arange(1, 12)
    return model(ids_t, SequenceLayout.from_lengths((7, 4)))


def logits_of_routers(model):
    """By hooks: the router's input times its weight, in fp64."""
    found = []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda gate, inputs, _: found.append(inputs[0].double() @ gate.weight.double().t()))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        forward(model)
    for hook in hooks:
        hook.remove()
    return found


def test_sums_of_every_layer_in_order():
    model, recorder = recorded_model()
    with recorder.recording():
        forward(model)
    logits = logits_of_routers(model)
    assert len(recorder.probabilities) == len(recorder.squared_z) == LAYERS
    for logits_te, probability_e, squared_z in zip(logits, recorder.probabilities, recorder.squared_z, strict=True):
        # fp32 against fp64 over 11 tokens.
        torch.testing.assert_close(probability_e.double(), logits_te.softmax(-1).sum(0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(squared_z.double(), logits_te.logsumexp(-1).square().sum(), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(recorder.probabilities[0], recorder.probabilities[1], rtol=1e-3)  # control: layers differ


def test_only_what_is_wanted_and_only_while_recording():
    model, recorder = recorded_model(squared_z=False)
    forward(model)
    assert recorder.probabilities == []
    with recorder.recording():
        forward(model)
    assert (len(recorder.probabilities), recorder.squared_z) == (LAYERS, [])
    forward(model)
    assert len(recorder.probabilities) == LAYERS
    with recorder.recording(), torch.no_grad():
        forward(model)
    assert recorder.probabilities == []


def test_recomputation_keeps_nothing_alive():
    model, recorder = recorded_model()
    model.gradient_checkpointing = True
    kept = []
    original = recorder.record

    def record(logits_te):
        kept.append(weakref.ref(logits_te))
        original(logits_te)

    recorder.record = record
    with recorder.recording():
        hidden_td = forward(model)
    loss = hidden_td.sum() + sum(recorder.squared_z)
    loss.backward()
    recorder.clear()
    del hidden_td, loss
    gc.collect()
    assert len(kept) == 2 * LAYERS  # once forward, once again in the backward pass
    assert [reference() for reference in kept] == [None] * len(kept)
