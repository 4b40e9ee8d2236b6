"""The whole network's step on a CPU in one call of the compiled kernels: all layers, for new tokens of any mix of sequences."""

from ms4_kernels.step.interface import NetworkStep, against
from ms4_kernels.step.weights import ExpertStacks, LayerWeights, LowRank, Matrix, NetworkWeights, Projection

__all__ = ["ExpertStacks", "LayerWeights", "LowRank", "Matrix", "NetworkStep", "NetworkWeights", "Projection", "against"]
