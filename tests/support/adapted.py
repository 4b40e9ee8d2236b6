"""Tiny models with adapters on them, the loss on rows with and without images, and the same as explicit arithmetic or in PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from support.checkpoints import randomise, relative_error
from support.models import hf_twin, tiny_model
from support.multimodal import cells_of, hf_images, hf_multimodal_twin, hf_name, image_batch, random_pixels, sequence_ids, tiny_multimodal
from torch import Tensor, nn

from ms4_train.adapters import adapter_tensors, attach
from ms4_train.adapters.attach import adapter_parameters
from ms4_train.config.schema import AdapterSection
from ms4_train.model import ImageBatch, Mistral3ForConditionalGeneration, Mistral4ForCausalLM, SequenceLayout
from ms4_train.training.loss import next_token_loss

PARTS = (5, (2, 3), 7, (1, 2), 9)


def section(**values: Any) -> AdapterSection:
    """Rank 4 and a scale that is no power of two."""
    return AdapterSection(**{"r": 4, "lora_alpha": 7.0, **values})


def adapted(
    settings: AdapterSection, *, vision: bool = False, dtype: torch.dtype = torch.float32, filled: bool = True
) -> Mistral4ForCausalLM:
    """A tiny model with the adapter, its values random."""
    model = tiny_multimodal(dtype=dtype) if vision else tiny_model(dtype=dtype)
    torch.manual_seed(3)
    attach(model, settings)
    if filled:
        shake(adapter_tensors(model))
    return model


@torch.no_grad()
def shake(tensors: Mapping[str, Tensor], seed: int = 11) -> None:
    """Random low-rank factors; lengths of rows and modules saved whole keep their size and change by a tenth."""
    whole = {name: tensor for name, tensor in tensors.items() if "magnitude" in name or ".modules_to_save." in name}
    before = {name: tensor.clone() for name, tensor in whole.items()}
    randomise(tensors, seed)
    for name, tensor in whole.items():
        tensor.copy_(before[name] * (1 + 0.5 * tensor))


def inputs(model: Mistral4ForCausalLM) -> tuple[Tensor, ImageBatch | None]:
    """Token ids, with two images in a model that sees."""
    if isinstance(model, Mistral3ForConditionalGeneration):
        return sequence_ids(PARTS, 512), image_batch(random_pixels(cells_of(PARTS), model.vision_config), model.vision_config)
    return sequence_ids([40], 512), None


def loss_of(model: Mistral4ForCausalLM) -> Tensor:
    """Mean loss per token, formed chunk by chunk as training forms it."""
    ids_t, images = inputs(model)
    hidden_td = model(ids_t, SequenceLayout.from_lengths([len(ids_t)]), images=images)
    return next_token_loss(model.lm_head, hidden_td[:-1], ids_t[1:], chunk_tokens=16) / (len(ids_t) - 1)


@torch.no_grad()
def logits_of(model: Mistral4ForCausalLM) -> Tensor:
    """Logits of every token."""
    ids_t, images = inputs(model)
    return model.logits(model(ids_t, SequenceLayout.from_lengths([len(ids_t)]), images=images))


def gradients(model: Mistral4ForCausalLM) -> dict[str, Tensor]:
    """Gradients of the adapter's parameters by name."""
    loss_of(model).backward()
    return {name: parameter.grad for name, parameter in adapter_parameters(model).items() if parameter.grad is not None}


class _Loss(nn.Module):
    def __init__(self, model: Mistral4ForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> Tensor:
        return loss_of(self.model)


def explicit_gradients(plain: Mistral4ForCausalLM, tensors: Mapping[str, Tensor], scale_of: Any) -> dict[str, Tensor]:
    """Gradients with every adapted weight formed as ``W + s B A`` by torch, for low-rank pairs of every kind.

    Args:
        plain: the model without an adapter.
        tensors: the adapter's values by name.
        scale_of: full name of an adapted weight, without ``.weight`` -> scale.
    """
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}
    parameters = dict(plain.named_parameters())
    weights: dict[str, Tensor] = {}
    for name, a in leaves.items():
        if ".lora_A." in name:
            owner, b = name.partition(".lora_A.")[0], leaves[name.replace(".lora_A.", ".lora_B.")]
            weights[f"{owner}.weight"] = parameters[f"{owner}.weight"].detach() + scale_of(owner) * b @ a
        elif ".lora_embedding_A." in name:
            owner, b = name.partition(".lora_embedding_A.")[0], leaves[name.replace("_A.", "_B.")]
            weights[f"{owner}.weight"] = parameters[f"{owner}.weight"].detach() + scale_of(owner) * (b @ a).t()
        elif "_a_er" in name:
            stack = name.replace(".lora.gate_up_a_erd", ".gate_up_proj").replace(".lora.down_a_ern", ".down_proj")
            b = leaves[name.replace("gate_up_a_erd", "gate_up_b_eir").replace("down_a_ern", "down_b_edr")]
            weights[stack] = parameters[stack].detach() + scale_of(stack) * torch.einsum("eor,eri->eoi", b, a)
        elif ".modules_to_save." in name:
            weights[name.replace(".modules_to_save.default", "")] = a
    whole = _Loss(plain)
    torch.func.functional_call(whole, {f"model.{name}": weight for name, weight in weights.items()}, ()).backward()
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def peft_twin(model: Mistral4ForCausalLM, settings: Any) -> Any:
    """PEFT over transformers' model with the base weights of the same seed and ``model``'s adapter; no stacks."""
    from peft import get_peft_model

    is_vision = isinstance(model, Mistral3ForConditionalGeneration)
    dtype = model.lm_head.weight.dtype
    base = hf_multimodal_twin(tiny_multimodal(dtype=dtype)) if is_vision else hf_twin(tiny_model(dtype=dtype))
    oracle: Any = get_peft_model(base, settings)
    values = {peft_name(name, is_vision=is_vision): value for name, value in adapter_parameters(model).items()}
    unknown = set(values) - {name for name, parameter in oracle.named_parameters() if parameter.requires_grad}
    assert not unknown, unknown
    oracle.load_state_dict(values, strict=False)
    return oracle


def peft_name(name: str, *, is_vision: bool) -> str:
    """PEFT's name, in a model in memory, of one of our adapter parameters; not for stacks."""
    return "base_model.model." + (hf_name(name) if is_vision else name)


def peft_inputs(model: Mistral4ForCausalLM) -> dict[str, Tensor]:
    """``inputs`` as transformers takes them."""
    ids_t, images = inputs(model)
    if images is None:
        return {"input_ids": ids_t[None]}
    assert isinstance(model, Mistral3ForConditionalGeneration)
    return {"input_ids": ids_t[None], **hf_images(random_pixels(cells_of(PARTS), model.vision_config))}


def compare_with_peft(model: Mistral4ForCausalLM, oracle: Any, close: float = 1e-4) -> None:
    """Logits and the gradients of every trained parameter, relative to the largest value of each."""
    given = peft_inputs(model)
    with torch.no_grad():
        theirs = oracle.eval()(**given, use_cache=False).logits[0]
    assert relative_error(logits_of(model), theirs) < close
    found = gradients(model)
    logits_tv = oracle(**given, use_cache=False).logits[0]
    torch.nn.functional.cross_entropy(logits_tv[:-1], given["input_ids"][0, 1:]).backward()
    expected = {name: parameter.grad for name, parameter in oracle.named_parameters() if parameter.requires_grad}
    named = {peft_name(name, is_vision=isinstance(model, Mistral3ForConditionalGeneration)): value for name, value in found.items()}
    assert named.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        assert relative_error(named[name], gradient) < close, name
