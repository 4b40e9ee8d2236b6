"""Rotary position embedding: YaRN frequencies over interleaved pairs, and the Llama-4 query scale (spec sections 0.2, 0.4 and 2.1).

Exercise it: ``pytest tests/ms4_train/model/test_rope.py``.

Shape suffixes: t tokens, p rotary lanes (qk_rope_head_dim, two per frequency), f frequencies = p / 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ms4_kernels.native.rotary import rotate_tail, serves_rotation
from ms4_train.model.config import RopeParameters, TextConfig


def yarn_frequencies(rope: RopeParameters, rotary_dim: int) -> Tensor:
    """Return the angle per position of each lane pair, fp32 [rotary_dim / 2].

    Fast lanes (more than ``beta_fast`` turns over the original context) keep their frequency, slow ones (fewer than ``beta_slow``) are
    divided by ``factor``, with a linear ramp between: lanes 12 and 25 of 32 for the release.
    """

    def lane_of(turns: float) -> float:
        positions_per_turn = rope.original_max_position_embeddings / (turns * 2 * math.pi)
        return rotary_dim * math.log(positions_per_turn) / (2 * math.log(rope.rope_theta))

    low, high = lane_of(rope.beta_fast), lane_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    span = high - low or 0.001  # a ramp of no width is a step
    ramp_f = ((torch.arange(rotary_dim // 2, dtype=torch.float32) - low) / span).clamp(0, 1)
    kept_f = 1.0 / rope.rope_theta ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)
    return kept_f * (1 - ramp_f) + kept_f / rope.factor * ramp_f


class RotaryTable:
    """Cosines and sines of positions.

    Deliberately not a module with a buffer: a buffer would be left unset by a build on the meta device and rounded by a cast to bf16.
    """

    def __init__(self, config: TextConfig) -> None:
        self._rope = config.rope_parameters
        self._frequencies: dict[torch.device, Tensor] = {}
        self._rotary_dim = config.qk_rope_head_dim

    def __call__(self, position_t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (cos_tp, signed_sin_tp), fp32 [T, P], for :func:`apply_rotary`; each frequency stands in both lanes of its pair."""
        device = position_t.device
        if device not in self._frequencies:
            with torch.device("cpu"):
                self._frequencies[device] = yarn_frequencies(self._rope, self._rotary_dim).to(device)
        angle_tf = position_t[:, None].float() * self._frequencies[device]
        factor = self._rope.cos_sin_factor
        cos_tf, sin_tf = angle_tf.cos() * factor, angle_tf.sin() * factor
        return cos_tf.repeat_interleave(2, dim=-1), torch.stack((-sin_tf, sin_tf), dim=-1).flatten(-2)


def apply_rotary(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotate the pairs (2i, 2i + 1) of the last axis: ``y[2i] = x[2i] c - x[2i+1] s``, ``y[2i+1] = x[2i+1] c + x[2i] s``.

    Args:
        x: [..., P].
        cos: from :class:`RotaryTable`, broadcastable to ``x``.
        signed_sin: the same with the sine's sign of each lane.

    Returns:
        [..., P] in the type of ``x``, pairs left where they are; computed in fp32 or wider.
    """
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (x * cos + swapped * signed_sin).to(x.dtype)


def rotate_last_lanes(x_thx: Tensor, cos_tp: Tensor, signed_sin_tp: Tensor) -> Tensor:
    """Rotate the last P lanes of each head [T, h, x], as :func:`apply_rotary` does, and leave the others."""
    if serves_rotation(x_thx, cos_tp, signed_sin_tp):
        return rotate_tail(x_thx, cos_tp, signed_sin_tp)
    lanes = cos_tp.shape[1]
    kept_thn, turned_thp = x_thx.split((x_thx.shape[-1] - lanes, lanes), dim=-1)
    return torch.cat((kept_thn, apply_rotary(turned_thp, cos_tp[:, None], signed_sin_tp[:, None])), dim=-1)


def llama4_query_scale(position_t: Tensor, rope: RopeParameters) -> Tensor:
    """Return ``1 + beta * ln(1 + floor(position / original_max))``, fp32 [T]: exactly 1 below the original context length."""
    window_t = torch.div(position_t, rope.original_max_position_embeddings, rounding_mode="floor")
    return 1 + rope.llama_4_scaling_beta * torch.log(1 + window_t.float())
