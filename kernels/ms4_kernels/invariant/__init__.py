"""Results that do not depend on what else is in the batch: a mode in which every product and sum has one order."""

from ms4_kernels.invariant.mode import batch_invariant
from ms4_kernels.invariant.switch import is_on

__all__ = ["batch_invariant", "is_on"]
