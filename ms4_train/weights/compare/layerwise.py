"""The network run with its weights on the disk: each block is read, run and forgotten, so that 119B parameters need under 1 GB.

The modules are those of ``ms4_train.model``, made on the meta device and filled from a checkpoint of any layout. Of the routed experts only
those are read that a token goes to, one at a time; of the embedding only the rows asked for; the head comes in chunks of rows.
Exercise it: ``pytest tests/ms4_train/weights/compare/test_layerwise.py``.

Not covered: the vision tower, gradients, generation.

Shape suffixes: t tokens, k experts per token, d hidden, n expert intermediate, i = 2n (gate rows, then up rows), v rows of the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ms4_kernels.moe import experts
from ms4_train.model import SequenceLayout
from ms4_train.model.attention import Mistral4Attention
from ms4_train.model.moe import Mistral4MoE
from ms4_train.model.norm import RMSNorm
from ms4_train.model.plan import AttentionPlan
from ms4_train.model.rope import RotaryTable
from ms4_train.weights.layouts.pieces import Piece
from ms4_train.weights.reading.checkpoint import Checkpoint
from ms4_train.weights.reading.loading import put_parameter

Half = Literal["attention", "experts"]
HALVES: tuple[Half, ...] = ("attention", "experts")
"""The two halves of a layer, each a norm, a block, and a sum with what came in."""

HEAD_BYTES = 64 << 20
"""Rows of the head that are held at a time, in fp32."""


class LayerwiseModel:
    """The text network of a checkpoint, in fp32, a block at a time.

    Args:
        checkpoint: of any layout.
        round_to: type to which a piece's values are rounded before they are used; None uses them as they are (quantised ones in fp32).
    """

    def __init__(self, checkpoint: Checkpoint, round_to: Callable[[Piece], torch.dtype | None] | None = None) -> None:
        self.checkpoint = checkpoint
        self.config = checkpoint.config.text
        self._round_to = round_to if round_to is not None else lambda piece: None
        self._pieces = checkpoint.pieces()
        self._rotary = RotaryTable(self.config)
        self.experts_reached: set[tuple[int, int]] = set()
        """(layer, expert) of every routed expert that ran."""

    def plan(self, layout: SequenceLayout) -> AttentionPlan:
        """What all layers share for sequences of this layout."""
        return AttentionPlan.build(layout, self.config, self._rotary, torch.device("cpu"))

    def embed(self, ids_t: Tensor) -> Tensor:
        """Embeddings of tokens, [T, d]; ids must lie within the vocabulary."""
        unique, where_t = ids_t.unique(return_inverse=True)
        rows = [self.read("model.embed_tokens.weight", (int(token), int(token) + 1)) for token in unique]
        return torch.cat(rows)[where_t]

    @torch.no_grad()
    def block(self, layer: int, half: Half, hidden_td: Tensor, plan: AttentionPlan) -> Tensor:
        """What half a layer adds to the residual stream, [T, d]."""
        prefix = f"model.layers.{layer}."
        norm = "input_layernorm" if half == "attention" else "post_attention_layernorm"
        normed_td = self._norm(f"{prefix}{norm}", hidden_td)
        if half == "attention":
            with torch.device("meta"):
                attention = Mistral4Attention(self.config, layer)
            self._fill(attention, f"{prefix}self_attn.")
            return attention(normed_td, plan, None)
        with torch.device("meta"):
            moe = Mistral4MoE(self.config)
        moe.experts = StreamedExperts(self, layer)  # type: ignore[assignment]
        self._fill(moe, f"{prefix}mlp.")
        return moe(normed_td)

    @torch.no_grad()
    def logits(self, hidden_td: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Final norm and head: (first token id, logits [T, v] of it and the ids behind it), until the vocabulary is through."""
        normed_td = self._norm("model.norm", hidden_td)
        step = max(1, HEAD_BYTES // (4 * self.config.hidden_size))
        for start in range(0, self.config.vocab_size, step):
            rows = (start, min(start + step, self.config.vocab_size))
            yield start, F.linear(normed_td, self.read("lm_head.weight", rows))

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """A piece's values, or some of its rows, in fp32, rounded as asked for."""
        piece = self._pieces[name]
        shape = piece.shape if rows is None else (rows[1] - rows[0], *piece.shape[1:])
        out = torch.empty(shape, dtype=self._round_to(piece) or torch.float32)
        self.checkpoint.read_into(piece, out, rows)
        return out.float()

    def _norm(self, name: str, hidden_td: Tensor) -> Tensor:
        norm = RMSNorm(self.config.hidden_size, self.config.rms_norm_eps)
        self._fill(norm, f"{name}.")
        return norm(hidden_td)

    def _fill(self, module: nn.Module, prefix: str) -> None:
        for name, _ in list(module.named_parameters()):
            put_parameter(module, name, self.read(prefix + name))


class StreamedExperts(nn.Module):
    """Stands for ``Mistral4Experts``: reads the experts that tokens go to, one after another, the next while one computes."""

    def __init__(self, model: LayerwiseModel, layer: int) -> None:
        super().__init__()
        self._model = model
        self._layer = layer

    def forward(self, hidden_td: Tensor, expert_ids_tk: Tensor, weights_tk: Tensor) -> Tensor:
        """The weighted sum of each token's experts, [T, d]; summed in slot order, as the experts operation does."""
        out_tkd = hidden_td.new_zeros(*expert_ids_tk.shape, hidden_td.shape[1])
        wanted = [int(expert) for expert in expert_ids_tk.unique()]
        self._model.experts_reached |= {(self._layer, expert) for expert in wanted}
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(self._read, wanted[0])
            for expert, following in zip(wanted, [*wanted[1:], None], strict=True):
                gate_up_eid, down_edn = pending.result()
                if following is not None:
                    pending = pool.submit(self._read, following)
                token_r, slot_r = (expert_ids_tk == expert).nonzero(as_tuple=True)
                only_r1 = torch.zeros(len(token_r), 1, dtype=torch.int64)
                weights_r1 = weights_tk[token_r, slot_r, None]
                out_tkd[token_r, slot_r] = experts(hidden_td[token_r], gate_up_eid, down_edn, only_r1, weights_r1)
        return out_tkd.sum(dim=1)

    def _read(self, expert: int) -> tuple[Tensor, Tensor]:
        stem = f"model.layers.{self._layer}.mlp.experts.{expert}."
        gate, up, down = (self._model.read(f"{stem}{matrix}.weight") for matrix in ("gate_proj", "up_proj", "down_proj"))
        return torch.cat((gate, up))[None], down[None]
