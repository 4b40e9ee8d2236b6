"""Attention of absorbed queries over a paged cache of latents, and writing to that cache: what decoding and continued prompts need."""

from ms4_kernels.latent_attention.interface import latent_attention, write_latents
from ms4_kernels.latent_attention.plan import LatentPlan

__all__ = ["LatentPlan", "latent_attention", "write_latents"]
