"""The routed experts of one layer as a single operation: gather, gated MLP of each expert, weighted combine."""

from ms4_kernels.moe.interface import ExpertLora, experts

__all__ = ["ExpertLora", "experts"]
