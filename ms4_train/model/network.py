"""The text network: embedding, layers, final norm, head. Parameter names equal transformers' ``Mistral4ForCausalLM``.

Exercise it: ``pytest tests/ms4_train/model/test_network.py``; parity with transformers: ``test_network_parity.py`` beside it.

Shape suffixes: t tokens of all sequences on one axis, d hidden, v vocabulary, e experts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ms4_kernels.dispatch import Backend
from ms4_train.model.attention import Mistral4Attention
from ms4_train.model.cache import LatentCache
from ms4_train.model.config import TextConfig
from ms4_train.model.images import ImageBatch
from ms4_train.model.layout import SequenceLayout
from ms4_train.model.moe import GatedMLP, Mistral4Experts, Mistral4MoE
from ms4_train.model.norm import RMSNorm
from ms4_train.model.plan import AttentionPlan
from ms4_train.model.rope import RotaryTable


class Mistral4DecoderLayer(nn.Module):
    """Attention and mixture of experts, each behind a norm and beside a residual."""

    def __init__(self, config: TextConfig, layer: int, backend: Backend) -> None:
        super().__init__()
        self.self_attn = Mistral4Attention(config, layer)
        self.mlp = Mistral4MoE(config, backend)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_td: Tensor, plan: AttentionPlan, cache: LatentCache | None) -> Tensor:
        """Return the residual stream after this layer."""
        hidden_td = hidden_td + self.self_attn(self.input_layernorm(hidden_td), plan, cache)
        return hidden_td + self.mlp(self.post_attention_layernorm(hidden_td))


class Mistral4Model(nn.Module):
    """From embeddings to the final norm. Takes embeddings, not ids, so that a caller may put others in the place of some tokens."""

    def __init__(self, config: TextConfig, backend: Backend) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Mistral4DecoderLayer(config, layer, backend) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryTable(config)

    def forward(self, embedding_td: Tensor, layout: SequenceLayout | AttentionPlan, cache: LatentCache | None = None) -> Tensor:
        """Return the hidden states after the final norm, [T, d].

        Args:
            embedding_td: of the new tokens.
            layout: of the new tokens; or the plan of the pass, where the caller has made one.
            cache: takes the new tokens' latents, and holds the earlier ones.

        Raises:
            ValueError: a layout that fits neither the embeddings nor the cache.
        """
        if layout.num_tokens != embedding_td.shape[0]:
            raise ValueError(f"layout of {layout.num_tokens} tokens for {embedding_td.shape[0]} embeddings")
        is_plan = isinstance(layout, AttentionPlan)
        plan = layout if is_plan else AttentionPlan.build(layout, self.config, self.rotary, embedding_td.device, cache)
        recompute = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        hidden_td = embedding_td
        for layer in self.layers:
            hidden_td = checkpoint(layer, hidden_td, plan, cache, use_reentrant=False) if recompute else layer(hidden_td, plan, cache)
        return self.norm(hidden_td)


class LanguageHead(nn.Linear):
    """From hidden states to logits over the vocabulary, [.., d] -> [.., v], or to what a caller makes of the two."""

    def forward(self, input: Tensor, reduce: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
        """Return the logits, or ``reduce(hidden, weight)`` where given.

        A chunked loss never wants all logits, yet it must see the weight inside a call of this module: that is where ZeRO 3 gathers it.
        """
        return super().forward(input) if reduce is None else reduce(input, self.weight)


class Mistral4ForCausalLM(nn.Module):
    """The text network with its head. A new one holds uninitialised weights: load them, or call :func:`init_weights`."""

    def __init__(self, config: TextConfig, *, experts_backend: Backend = "auto") -> None:
        super().__init__()
        self.config = config
        self.model = Mistral4Model(config, experts_backend)
        self.lm_head = LanguageHead(config.hidden_size, config.vocab_size, bias=False)

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether training recomputes each layer in the backward pass instead of keeping its activations."""
        return self.model.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enabled: bool) -> None:
        self.model.gradient_checkpointing = enabled

    @property
    def recompute_experts(self) -> bool:
        """Whether the experts keep their inputs only and compute pre-activations again in the backward pass."""
        return all(layer.mlp.experts.recompute for layer in self.model.layers)  # type: ignore[union-attr]

    @recompute_experts.setter
    def recompute_experts(self, enabled: bool) -> None:
        for layer in self.model.layers:
            layer.mlp.experts.recompute = enabled  # type: ignore[union-attr]

    def forward(
        self, input_ids_t: Tensor, layout: SequenceLayout, cache: LatentCache | None = None, images: ImageBatch | None = None
    ) -> Tensor:
        """Run all layers.

        Args:
            input_ids_t: int64 [T], the tokens of all sequences in a row, without padding.
            layout: where the sequences begin and end; positions follow from it.
            cache: receives the new tokens' latents. Required when a sequence of the layout continues earlier tokens.
            images: none; ``Mistral3ForConditionalGeneration`` takes them.

        Returns:
            [T, d] after the final norm; :meth:`logits` of the wanted ones is a separate step, because all of them rarely fit.

        Raises:
            ValueError: images for a network without a vision tower.
        """
        if images is not None:
            raise ValueError("this network has no vision tower, so it takes no images; a model folder with vision weights has one")
        return self.model(self.model.embed_tokens(input_ids_t), layout, cache)

    def logits(self, hidden_td: Tensor) -> Tensor:
        """Return next-token logits, fp32 (fp64 in an fp64 model) [T, V], of hidden states from :meth:`forward`."""
        logits_tv = self.lm_head(hidden_td)
        return logits_tv.to(torch.promote_types(logits_tv.dtype, torch.float32))

    def expert_counts(self) -> list[Tensor]:
        """Return, per layer, the tokens that the last forward pass sent to each expert, int64 [E]; of this rank's tokens only."""
        counts = [layer.mlp.expert_counts_e for layer in self.model.layers]  # type: ignore[union-attr]
        if any(counts_e is None for counts_e in counts):
            raise RuntimeError("no forward pass has run yet")
        return counts  # type: ignore[return-value]

    def prepare_decode(self, *, joins: bool = False) -> None:
        """Compute once what every absorbed decode step needs. The matrices do not follow later weight changes; training mode drops them.

        Args:
            joins: also copy small projections of one input into one matrix, where they are plain: fewer launches for a step on a GPU, at
                the price of these weights' memory again (0.7% of the 119B model's).
        """
        for layer in self.model.layers:
            layer.self_attn.prepare_decode(joins=joins)  # type: ignore[operator,union-attr]
            if joins and isinstance(layer.mlp.shared_experts, GatedMLP):  # type: ignore[union-attr]
                layer.mlp.shared_experts.prepare_decode()  # type: ignore[union-attr]

    def release_decode(self) -> None:
        """Drop what :meth:`prepare_decode` made, wherever: a module may have been replaced since."""
        for module in self.modules():
            if isinstance(module, Mistral4Attention | GatedMLP | Mistral4Experts):
                module.release_decode()

    @property
    def is_prepared(self) -> bool:
        """Whether what :meth:`prepare_decode` makes is there."""
        return all(layer.self_attn.is_prepared for layer in self.model.layers)  # type: ignore[union-attr]

    def train(self, mode: bool = True) -> Mistral4ForCausalLM:
        """Switch between training and evaluation; training changes weights, so it drops the decode matrices."""
        if mode:
            self.release_decode()
        return super().train(mode)
