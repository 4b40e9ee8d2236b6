"""The head's adapter inside the chunked loss: loss and gradients of the dense sum, and every weight read inside a call of its module."""

import pytest
import torch
from support.checkpoints import relative_error

from ms4_train.adapters.head_lora import LoraHead
from ms4_train.model.network import LanguageHead
from ms4_train.training.loss import IGNORED_TARGET, next_token_loss

TOKENS, HIDDEN, VOCABULARY = 19, 12, 37


def head(names=("default",), dora=False, dtype=torch.float32):
    torch.manual_seed(1)
    module = LoraHead(LanguageHead(HIDDEN, VOCABULARY, bias=False).to(dtype).requires_grad_(False))
    for rank, name in enumerate(names, start=3):
        module.add(name, rank=rank, scale=1.5)
        for factor in module.factors(name):
            torch.nn.init.normal_(factor, std=0.5)
        if dora:
            module.add_magnitude(name)
            module.lora_magnitude_vector[name].weight.data.mul_(torch.linspace(0.5, 1.5, VOCABULARY))
    module.active = tuple(names)
    return module


def batch(dtype=torch.float32):
    target_t = torch.randint(0, VOCABULARY, (TOKENS,))
    target_t[::3] = IGNORED_TARGET
    return torch.randn(TOKENS, HIDDEN, dtype=dtype, requires_grad=True), target_t


@pytest.mark.parametrize("chunk", [4, 1000])
@pytest.mark.parametrize(("names", "dora"), [(("default",), False), (("default", "second"), False), (("default",), True)])
def test_chunked_loss_equals_the_loss_of_all_logits(names, dora, chunk):
    module = head(names, dora)
    hidden_td, target_t = batch()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert len(trained) == (3 if dora else 2) * len(names)
    chunked = next_token_loss(module, hidden_td, target_t, chunk_tokens=chunk)  # type: ignore[arg-type]
    whole = torch.nn.functional.cross_entropy(module(hidden_td), target_t, ignore_index=IGNORED_TARGET, reduction="sum")
    torch.testing.assert_close(chunked, whole)
    found, expected = (torch.autograd.grad(loss, [hidden_td, *trained]) for loss in (chunked, whole))
    for mine, theirs in zip(found, expected, strict=True):
        assert relative_error(mine, theirs) < 1e-5


def test_logits_are_those_of_the_changed_weight():
    module = head(("default", "second"))
    hidden_td, _ = batch()
    torch.testing.assert_close(module(hidden_td), hidden_td @ module.changed_weight().t())
    module.active = ()
    assert torch.equal(module(hidden_td), module.base_layer(hidden_td))
    hidden_td, target_t = batch()
    assert torch.equal(next_token_loss(module, hidden_td, target_t), next_token_loss(module.base_layer, hidden_td, target_t))  # type: ignore[arg-type]


def test_every_weight_is_read_inside_a_call_of_its_module():
    """Where ZeRO 3 gathers it; the base is called once whatever the chunks."""
    module = head(("default", "second"))
    inside, calls, seen = set(), [], []
    parts = {f"{side} {name}": getattr(module, f"lora_{side}")[name] for side in "AB" for name in module.active}
    parts["base"] = module.base_layer

    def enter(label):
        calls.append(label)
        inside.add(label)

    for label, part in parts.items():
        part.register_forward_pre_hook(lambda *_, label=label: enter(label))
        part.register_forward_hook(lambda *_, label=label: inside.discard(label))

    def reduce(hidden, weight, low_rank):
        seen.append(set(inside))
        return (hidden @ weight.t() + low_rank[0] @ low_rank[1].t()).sum()

    module(batch()[0], reduce)
    assert seen == [{"base", "B default", "B second"}]
    assert sorted(calls) == sorted(parts)


def test_dropout_acts_on_the_adapters_input_only():
    module = head()
    module.lora_dropout["default"] = torch.nn.Dropout(0.5)
    hidden_td, target_t = batch()
    losses = [next_token_loss(module.train(mode), hidden_td, target_t).item() for mode in (False, False, True, True)]  # type: ignore[arg-type]
    assert losses[0] == losses[1]
    assert losses[2] != losses[3]
