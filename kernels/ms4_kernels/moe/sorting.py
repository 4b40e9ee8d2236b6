"""Moved to ``ms4_kernels.routing.sorting``. Exercise it: ``pytest tests/kernels/ms4_kernels/routing/test_sorting.py``."""

from ms4_kernels.routing.sorting import ExpertOrder as ExpertOrder
from ms4_kernels.routing.sorting import sort_by_expert as sort_by_expert
