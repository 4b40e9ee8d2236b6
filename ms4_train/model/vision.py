"""The Pixtral vision tower, the patch merger and the projector (spec section 2.3). Parameter names equal transformers'.

Patches of all images lie on one axis; attention is full inside each image and does not cross to another.
Exercise it: ``pytest tests/ms4_train/model/test_vision.py``.

Shape suffixes: p patches, i values of a patch, c channels, s patch side, d tower width, h heads, x head width, l frequencies,
n image tokens, m patches of a cell.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ms4_kernels.attention import PackedDocuments, packed_attention
from ms4_train.model.images import ImageBatch
from ms4_train.model.linear import Linear
from ms4_train.model.moe import GatedMLP
from ms4_train.model.norm import RMSNorm
from ms4_train.model.vision_config import VisionConfig

_TOWER_NORM_EPS = 1e-5  # fixed in every implementation, whatever the text network's is


class PatchConv(nn.Conv2d):
    """A convolution whose stride is its kernel, on patches that are cut already: one matrix product. To PEFT it is an ``nn.Conv2d``."""

    def forward(self, input: Tensor) -> Tensor:
        """[P, C, s, s] -> [P, d, 1, 1]."""
        return F.linear(input.flatten(1).to(self.weight.dtype), self.weight.flatten(1))[..., None, None]


class VisionAttention(nn.Module):
    """Full attention among the patches of each image, with rotary positions in two dimensions."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.scale = config.head_dim**-0.5
        self.q_proj = Linear(config.hidden_size, config.hidden_size)
        self.k_proj = Linear(config.hidden_size, config.hidden_size)
        self.v_proj = Linear(config.hidden_size, config.hidden_size)
        self.o_proj = Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_pd: Tensor, rotation: tuple[Tensor, Tensor], images: PackedDocuments) -> Tensor:
        """Attend; ``rotation`` holds cosines and sines [P, 1, x]."""
        query_phx, key_phx, value_phx = (
            projection(hidden_pd).unflatten(-1, (self.num_heads, -1)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query_phx, key_phx = _rotated(query_phx, rotation), _rotated(key_phx, rotation)
        out_phx = packed_attention(query_phx, key_phx, value_phx, images, scale=self.scale, causal=False)
        return self.o_proj(out_phx.flatten(1))


class VisionLayer(nn.Module):
    """Attention and gated MLP, each behind a norm and beside a residual."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, _TOWER_NORM_EPS)
        self.attention = VisionAttention(config)
        self.ffn_norm = RMSNorm(config.hidden_size, _TOWER_NORM_EPS)
        self.feed_forward = GatedMLP(config.hidden_size, config.intermediate_size)

    def forward(self, hidden_pd: Tensor, rotation: tuple[Tensor, Tensor], images: PackedDocuments) -> Tensor:
        """Return the residual stream after this layer."""
        hidden_pd = hidden_pd + self.attention(self.attention_norm(hidden_pd), rotation, images)
        return hidden_pd + self.feed_forward(self.ffn_norm(hidden_pd))


class VisionTransformer(nn.Module):
    """The layers of the tower."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_hidden_layers))


class VisionTower(nn.Module):
    """From patches to features; there is no norm behind the last layer."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.patch_conv = PatchConv(config.num_channels, config.hidden_size, config.patch_size, config.patch_size, bias=False)
        self.ln_pre = RMSNorm(config.hidden_size, _TOWER_NORM_EPS)
        self.transformer = VisionTransformer(config)

    def forward(self, images: ImageBatch) -> Tensor:
        """Return [P, d].

        Raises:
            ValueError: patches of another size.
        """
        config = self.config
        values = config.num_channels * config.patch_size**2
        if images.patches_pi.shape[1:] != (values,):
            raise ValueError(f"patches {list(images.patches_pi.shape)} for a tower that takes {values} values of each")
        patches_pcss = images.patches_pi.view(-1, config.num_channels, config.patch_size, config.patch_size)
        hidden_pd = self.ln_pre(self.patch_conv(patches_pcss).flatten(1))
        documents = PackedDocuments(images.lengths, hidden_pd.device)
        rotation = rotation_table(images, config, hidden_pd.dtype, hidden_pd.device)
        recompute = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for layer in self.transformer.layers:
            arguments = (hidden_pd, rotation, documents)
            hidden_pd = checkpoint(layer, *arguments, use_reentrant=False) if recompute else layer(*arguments)
        return hidden_pd


class PatchMerger(nn.Module):
    """Joins each cell of neighbouring patches into one."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.merge = config.spatial_merge_size
        self.merging_layer = Linear(config.hidden_size * self.merge**2, config.hidden_size)

    def forward(self, hidden_pd: Tensor, images: ImageBatch) -> Tensor:
        """[P, d] -> [N, d]; a cell's values are channel-major, as transformers unfolds them."""
        cells_nmd = hidden_pd[images.cells_nm(self.merge).to(hidden_pd.device)]
        return self.merging_layer(cells_nmd.transpose(1, 2).flatten(1))


class MultiModalProjector(nn.Module):
    """From the tower's features to embeddings of the text network."""

    def __init__(self, config: VisionConfig, text_hidden_size: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, norm_eps)
        self.patch_merger = PatchMerger(config)
        self.linear_1 = Linear(config.hidden_size, text_hidden_size)
        self.linear_2 = Linear(text_hidden_size, text_hidden_size)

    def forward(self, hidden_pd: Tensor, images: ImageBatch) -> Tensor:
        """[P, d] -> [N, text width]."""
        return self.linear_2(F.gelu(self.linear_1(self.patch_merger(self.norm(hidden_pd), images))))


def rotation_table(images: ImageBatch, config: VisionConfig, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines [P, 1, x] of each patch: even frequencies turn with its row, odd ones with its column."""
    frequencies = config.rope_theta ** -(torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
    row_p, column_p = images.position_p2.float().unbind(1)
    angle_pl = torch.cat((row_p[:, None] * frequencies[0::2], column_p[:, None] * frequencies[1::2]), dim=1)
    angle_p1x = torch.cat((angle_pl, angle_pl), dim=1)[:, None]
    return angle_p1x.cos().to(device, dtype), angle_p1x.sin().to(device, dtype)


def _rotated(values_phx: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate halves of a head against each other."""
    first, second = values_phx.chunk(2, dim=-1)
    return values_phx * rotation[0] + torch.cat((-second, first), dim=-1) * rotation[1]
