"""LoRA on an embedding against PEFT's layer: start, values, gradients, sums of several."""

import pytest
import torch
from support.checkpoints import relative_error

from ms4_train.adapters.embedding_lora import LoraEmbedding

VOCABULARY, WIDTH = 23, 8
IDS = torch.tensor([3, 0, 22, 3, 7])


def pair(names=("default",)):
    from peft import LoraConfig
    from peft.tuners.lora import Embedding as PeftEmbedding

    base = torch.nn.Embedding(VOCABULARY, WIDTH).requires_grad_(False)
    ours = LoraEmbedding(base)
    theirs = PeftEmbedding(base, names[0], config=LoraConfig(r=3, lora_alpha=6), r=3, lora_alpha=6)
    for name in names:
        ours.add(name, rank=3, scale=2.0)
        if name != names[0]:
            theirs.update_layer(name, 3, lora_alpha=6, config=LoraConfig(r=3, lora_alpha=6))
        for side in ("lora_embedding_A", "lora_embedding_B"):
            torch.nn.init.normal_(getattr(ours, side)[name])
            getattr(theirs, side)[name].data = getattr(ours, side)[name].detach().clone()
    ours.active = tuple(names)
    theirs.set_adapter(list(names))
    return ours, theirs


@pytest.mark.parametrize("names", [("default",), ("default", "second")])
def test_equals_pefts_layer(names):
    ours, theirs = pair(names)
    assert {name: p.shape for name, p in ours.named_parameters()} == {name: p.shape for name, p in theirs.named_parameters()}
    results = []
    for layer in (ours, theirs):
        factors = [getattr(layer, side)[name] for name in names for side in ("lora_embedding_A", "lora_embedding_B")]
        y = layer(IDS)
        results.append([y, *torch.autograd.grad((y * torch.linspace(-1, 1, WIDTH)).sum(), factors)])
    for mine, peft in zip(*results, strict=True):
        assert relative_error(mine.detach(), peft.detach()) < 1e-6
    torch.testing.assert_close(torch.nn.functional.embedding(IDS, ours.changed_weight()), ours(IDS))


def test_without_an_acting_adapter_it_is_the_embedding():
    ours, _ = pair()
    ours.active = ()
    assert torch.equal(ours(IDS), ours.base_layer(IDS))
    assert ours.weight is ours.base_layer.weight
