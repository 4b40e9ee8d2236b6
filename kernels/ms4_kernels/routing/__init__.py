"""Which experts a token goes to, and with which weights."""

from ms4_kernels.routing.reference import route, top_k_lower_id

__all__ = ["route", "top_k_lower_id"]
