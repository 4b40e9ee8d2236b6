"""The model's weights as the compiled step reads them: the tensors of its modules, where they lie, with the adapters of every kind of row.

Number 0 stands for a row for the model as it stands, number 1 + i for one for the i-th named adapter. Exercise it:
``pytest tests/ms4_train/inference/test_network_weights.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor, nn

from ms4_kernels.step.weights import ExpertStacks, LayerWeights, LowRank, Matrix, NetworkWeights, Projection
from ms4_train.adapters.adapted import AdaptedModule
from ms4_train.adapters.expert_lora import StackedLora
from ms4_train.adapters.linear_lora import LoraLinear
from ms4_train.adapters.trained_copy import TrainedCopy
from ms4_train.model.moe import Mistral4Experts
from ms4_train.model.network import Mistral4DecoderLayer, Mistral4ForCausalLM
from ms4_train.model.quantised import QuantisedLinear, QuantisedStack
from ms4_train.model.rope import yarn_frequencies

_T = TypeVar("_T")


def network_weights(model: Mistral4ForCausalLM, names: Sequence[str] = ()) -> NetworkWeights:
    """The weights of everything between the embedding and the logits. They share memory with the model's, adapters too.

    Args:
        model: of a kind that ``native_runner.against`` has nothing against.
        names: of adapters that rows may name, in the order of their numbers.
    """
    config = model.config
    rope, layers = config.rope_parameters, list(model.model.layers)
    first = layers[0]
    assert isinstance(first, Mistral4DecoderLayer)
    attention, router = first.self_attn, first.mlp.gate
    return NetworkWeights(
        layers=[_layer(layer, names) for layer in layers],
        final_norm=model.model.norm.weight.detach(),
        head=_projection(model.lm_head, names),
        norm_eps=config.rms_norm_eps,
        num_heads=attention.num_heads,
        nope=attention.nope_dim,
        rope=attention.rope_dim,
        value=attention.value_dim,
        latent_rank=attention.latent_rank,
        top_k=router.top_k,
        renormalise=router.renormalize,
        routed_scale=router.routed_scaling_factor,
        attention_scale=attention.scale,
        frequencies_f=yarn_frequencies(rope, attention.rope_dim),
        cos_sin_factor=rope.cos_sin_factor,
        llama4_beta=rope.llama_4_scaling_beta,
        llama4_original=rope.original_max_position_embeddings,
        latent_norm_eps=attention.q_a_layernorm.eps,
        dequantised_to=attention.kv_a_layernorm.weight.dtype,
    )


def running(module: nn.Module) -> nn.Module:
    """What computes a row for the model as it stands: the module without adapters around it, or the copy that runs in its place."""
    if isinstance(module, TrainedCopy):
        return running(module.running)
    return module.base_layer if isinstance(module, AdaptedModule) else module


def _layer(layer: nn.Module, names: Sequence[str]) -> LayerWeights:
    # Attributes go through copies that run in a module's place, whole attention blocks too.
    assert isinstance(layer, Mistral4DecoderLayer)
    attention, mlp = layer.self_attn, layer.mlp
    router = running(mlp.gate)
    assert isinstance(router.weight, Tensor)
    return LayerWeights(
        input_norm=layer.input_layernorm.weight.detach(),
        q_a=_projection(attention.q_a_proj, names),
        q_a_norm=attention.q_a_layernorm.weight.detach(),
        q_b=_projection(attention.q_b_proj, names),
        kv_a=_projection(attention.kv_a_proj_with_mqa, names),
        kv_a_norm=attention.kv_a_layernorm.weight.detach(),
        kv_b=_projection(attention.kv_b_proj, names),
        o=_projection(attention.o_proj, names),
        post_norm=layer.post_attention_layernorm.weight.detach(),
        router=router.weight.detach(),
        experts=_stacks(mlp.experts, names),
        shared_gate=_projection(mlp.shared_experts.gate_proj, names),
        shared_up=_projection(mlp.shared_experts.up_proj, names),
        shared_down=_projection(mlp.shared_experts.down_proj, names),
    )


def _projection(module: nn.Module, names: Sequence[str]) -> Projection:
    base = running(module)
    weight: Matrix = base.value() if isinstance(base, QuantisedLinear) else base.weight.detach()  # type: ignore[union-attr,operator]
    if not isinstance(module, LoraLinear):
        return Projection(weight)

    def pair(name: str) -> LowRank:
        a_ri, b_or = module.factors(name)
        return LowRank(a_ri.detach(), b_or.detach(), module.scales[name])

    return Projection(weight, _by_number(names, module.names_of, pair))


def _stacks(experts: Mistral4Experts, names: Sequence[str]) -> ExpertStacks:
    gate_up, down = (
        stack.value() if isinstance(stack, QuantisedStack) else stack.detach() for stack in (experts.gate_up_proj, experts.down_proj)
    )
    lora = experts.lora
    if not isinstance(lora, StackedLora):
        return ExpertStacks(gate_up, down)
    return ExpertStacks(gate_up, down, _by_number(names, lora.names_of, lambda name: lora.of(name).own_lora()))


def _by_number(
    names: Sequence[str], names_of: Callable[[str | None], tuple[str, ...]], make: Callable[[str], _T]
) -> dict[int, tuple[_T, ...]]:
    """What a module adds to a row, by the row's number."""
    found = {number: names_of(adapter) for number, adapter in enumerate((None, *names))}
    return {number: tuple(make(name) for name in acting) for number, acting in found.items() if acting}
