"""The head and the loss as one operation: cross-entropy straight from hidden states, without ever holding all logits."""

from ms4_kernels.cross_entropy.interface import IGNORED_TARGET, linear_cross_entropy

__all__ = ["IGNORED_TARGET", "linear_cross_entropy"]
