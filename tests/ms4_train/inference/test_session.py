"""What a session does to the model it borrows: nothing that outlasts it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ms4_train.adapters import adapter_tensors, attach
from ms4_train.config.schema import AdapterSection
from ms4_train.inference import Engine, GenerationRequest, SamplingParams
from ms4_train.model import Mistral4ForCausalLM, SequenceLayout


def loss_gradients(model: Mistral4ForCausalLM) -> dict[str, torch.Tensor]:
    """Gradients of next-token loss on fixed tokens."""
    model.zero_grad(set_to_none=True)
    ids = torch.arange(40, 70)
    logits_tv = model.logits(model(ids, SequenceLayout.from_lengths([10, 20])))
    nn.functional.cross_entropy(logits_tv[:-1], ids[1:]).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def requests_of(prompts: list[tuple[int, ...]]) -> list[GenerationRequest]:
    return [GenerationRequest(str(index), prompt, SamplingParams(max_tokens=4)) for index, prompt in enumerate(prompts)]


def test_training_goes_on_after_generation_as_if_nothing_had_happened(model, tokenizer, prompts) -> None:
    """Also when generation comes first, so that nothing lazily made under inference mode reaches autograd."""
    model.train()
    Engine(model, tokenizer).generate(requests_of(prompts))
    after = loss_gradients(model)
    again = loss_gradients(model)
    Engine(model, tokenizer).generate(requests_of(prompts))
    third = loss_gradients(model)
    assert after.keys() == dict(model.named_parameters()).keys()
    for name, gradient in after.items():
        assert torch.equal(gradient, again[name])
        assert torch.equal(gradient, third[name])


def test_generation_uses_the_weights_of_the_moment(model, tokenizer, prompts) -> None:
    """The absorbed matrices are made anew for each call: a change of kv_b_proj between calls must show."""
    engine = Engine(model, tokenizer)
    before = engine.generate(requests_of(prompts))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.kv_b_proj.weight.mul_(-1)
    after = engine.generate(requests_of(prompts))
    single = [engine.generate([wanted])[0] for wanted in requests_of(prompts)]
    assert [completion.token_ids for completion in after] == [completion.token_ids for completion in single]
    assert [completion.token_ids for completion in after] != [completion.token_ids for completion in before]


@pytest.mark.parametrize("training", [True, False])
def test_each_modules_mode_and_gradients_are_as_before(model, tokenizer, prompts, training: bool) -> None:
    model.train(training)
    model.model.layers[0].mlp.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    gradients = loss_gradients(model)
    seen: list[bool] = []
    Engine(model, tokenizer).generate(requests_of(prompts), on_finish=lambda _: seen.append(model.training))
    assert seen
    assert not any(seen)
    assert {name: module.training for name, module in model.named_modules()} == modes
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradients[name])
        assert parameter.requires_grad


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_a_hook_passes_through_and_the_model_is_given_back(model, tokenizer, prompts, error: type[BaseException]) -> None:
    model.train()
    engine = Engine(model, tokenizer)

    def fail(_: object) -> None:
        raise error("from the hook")

    with pytest.raises(error, match="from the hook"):
        engine.generate(requests_of(prompts), on_finish=fail)
    assert model.training
    assert all(layer.self_attn._absorbed is None for layer in model.model.layers), "decode matrices were left behind"
    assert len(engine.generate(requests_of(prompts))) == len(prompts)


def test_bfloat16_models_generate(model, tokenizer, prompts) -> None:
    """No exactness is promised in bf16; it must run and hold its cache in bf16."""
    wide = Engine(model, tokenizer).max_cache_bytes
    engine = Engine(model.to(torch.bfloat16), tokenizer)
    assert engine.max_cache_bytes * 2 == wide
    assert all(completion.token_ids for completion in engine.generate(requests_of(prompts)))


def test_an_attached_adapter_counts_in_both_forms_of_attention(model, tokenizer, prompts, alone) -> None:
    """Against recomputing the whole sequence in the expanded form, with low-rank pairs on kv_b_proj and on the experts."""
    before = Engine(model, tokenizer).generate(requests_of(prompts))
    attach(model, AdapterSection(r=4, target_modules=["q_b_proj", "kv_b_proj"], target_parameters=["mlp.experts.down_proj"]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in adapter_tensors(model).values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    after = Engine(model, tokenizer).generate(requests_of(prompts))
    assert [completion.token_ids for completion in after] == [alone(prompt, 4) for prompt in prompts]
    assert [completion.token_ids for completion in after] != [completion.token_ids for completion in before]
