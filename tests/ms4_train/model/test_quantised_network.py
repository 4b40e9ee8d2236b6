"""A network with quantised weights against the network of the same values: training an adapter, decoding, memory."""

from __future__ import annotations

import pytest
import torch
from support.checkpoints import full_section, our_logits, randomise, relative_error, some_ids
from support.models import tiny_config
from support.quantised import LiveMatrices
from support.quantised_models import KINDS, dequantised_twin, quantised_tiny
from support.tokenizers import tiny_tokenizer

from ms4_train.adapters import adapter_tensors, attach
from ms4_train.adapters.linear_lora import LoraLinear
from ms4_train.inference import Engine, GenerationRequest, SamplingParams
from ms4_train.model import DenseLatentCache, SequenceLayout
from ms4_train.model.quantised import QuantisedLinear, QuantisedStack, quantised_modules


def adapted(model):
    torch.manual_seed(3)
    attach(model, full_section())
    randomise(adapter_tensors(model))
    return model.train()


def gradients(model):
    """Loss and adapter gradients of one document."""
    ids_t = some_ids(60)
    hidden_td = model(ids_t, SequenceLayout.from_lengths([40, 20]))
    loss = torch.nn.functional.cross_entropy(model.logits(hidden_td[:-1]), ids_t[1:])
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return loss.detach(), dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_values(kind):
    model = quantised_tiny(kind)
    assert relative_error(our_logits(model), our_logits(dequantised_twin(model))) < 1e-6  # the same fp32 products


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_wrap_quantised_layers_and_gradients_are_those_over_the_values(kind):
    model = quantised_tiny(kind)
    plain = adapted(dequantised_twin(model))
    adapted(model)
    wrapped = {name for name, module in model.named_modules() if isinstance(module, LoraLinear)}
    assert wrapped == {name for name, module in plain.named_modules() if isinstance(module, LoraLinear)}
    assert len(wrapped) == 2 * 8
    quantised_bases = [name for name in wrapped if isinstance(model.get_submodule(name).base_layer, QuantisedLinear)]
    assert len(quantised_bases) == 2 * {"fp8": 8, "nvfp4": 3}[kind]

    (loss, actual), (expected_loss, expected) = gradients(model), gradients(plain)
    assert actual.keys() == expected.keys()
    assert float(abs(loss - expected_loss)) < 1e-6
    for name, gradient in expected.items():
        assert relative_error(actual[name], gradient) < 1e-5, name  # fp32, sums in another order at most
        assert gradient.any(), name


def test_checkpointing_and_deterministic_algorithms_change_nothing():
    model = adapted(quantised_tiny("fp8"))
    loss, expected = gradients(model)
    model.gradient_checkpointing = True
    torch.use_deterministic_algorithms(True)
    try:
        again, actual = gradients(model)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(loss, again)
    assert all(torch.equal(actual[name], gradient) for name, gradient in expected.items())


@pytest.mark.parametrize("with_adapter", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_gives_the_tokens_of_the_values(kind, with_adapter):
    tokenizer = tiny_tokenizer()
    model = quantised_tiny(kind, tiny_config(vocab_size=tokenizer.vocab_size))
    plain = dequantised_twin(model)
    if with_adapter:
        adapted(model).eval()
        adapted(plain).eval()
    generator = torch.Generator().manual_seed(2)
    prompts = [tuple(torch.randint(38, tokenizer.vocab_size, (length,), generator=generator).tolist()) for length in (1, 7, 30)]
    requests = [GenerationRequest(str(index), prompt, SamplingParams(max_tokens=24)) for index, prompt in enumerate(prompts)]
    actual, expected = (Engine(each, tokenizer).generate(requests) for each in (model, plain))
    assert [completion.token_ids for completion in actual] == [completion.token_ids for completion in expected]
    assert sum(len(completion.token_ids) for completion in actual) > 20


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_absorbed_matrices_come_from_the_codes(kind):
    """A step that continues cached tokens, with and without kept matrices, equals one pass over the whole sequence."""
    model, ids_t = quantised_tiny(kind), some_ids(24)
    expected = model(ids_t, SequenceLayout.from_lengths([24]))[-4:]
    for prepared in (False, True):
        cache = DenseLatentCache(model.config, slots=1, max_len=24)
        model(ids_t[:20], SequenceLayout((20,), slots=(0,)), cache)
        if prepared:
            model.prepare_decode()
        actual = model(ids_t[20:], SequenceLayout((4,), starts=(20,), slots=(0,)), cache)
        assert relative_error(actual, expected) < 1e-5  # fp32, other sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_holds_one_dequantised_matrix_at_a_time(kind, dtype):
    # Widths that no activation shares: 37 tokens.
    config = tiny_config(num_hidden_layers=1, moe_intermediate_size=48, hidden_size=80, q_lora_rank=32, kv_lora_rank=16)
    model = quantised_tiny(kind, config, dtype=dtype)
    sizes = {stack.shape[1:].numel() for _, stack in quantised_modules(model) if isinstance(stack, QuantisedStack)}
    sizes |= {linear.logical_shape.numel() for _, linear in quantised_modules(model) if isinstance(linear, QuantisedLinear)}
    embedding_td = torch.randn(37, 80, dtype=dtype, requires_grad=True)

    def step(network):
        network.model(embedding_td, SequenceLayout.from_lengths([37])).float().sum().backward()

    with LiveMatrices(*sizes) as live:
        step(model)
    # Under the size from which tables are used, a bf16 matrix is made from one in fp32, and the CPU's product widens it again.
    copies = 1 if dtype == torch.float32 else 2
    assert 0 < live.peak <= copies * max(sizes)

    with LiveMatrices(*sizes) as live:  # negative control: the count sees matrices that are kept
        stacks = [module.value() for _, module in quantised_modules(model) if isinstance(module, QuantisedStack)]
        _kept = [stack.expert(index).dequantise(dtype) for stack in stacks for index in range(stack.shape[0])]
        step(model)
    assert live.peak > 8 * max(sizes)


@pytest.mark.parametrize("kind", KINDS)
def test_autograd_keeps_nothing_but_codes_beside_activations(kind):
    model = quantised_tiny(kind)
    plain = dequantised_twin(model).requires_grad_(False)
    model.requires_grad_(False)

    def kept_bytes(network):
        kept = {}
        embedding_td = torch.randn(16, 64, requires_grad=True)

        def keep(x):
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        owned = {tensor.untyped_storage().data_ptr() for tensor in [*network.parameters(), *network.buffers()]}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            network.model(embedding_td, SequenceLayout.from_lengths([16]))
        return sum(size for pointer, size in kept.items() if pointer not in owned)

    assert kept_bytes(model) <= kept_bytes(plain)
