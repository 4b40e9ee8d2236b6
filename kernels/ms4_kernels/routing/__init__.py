"""Which experts a token goes to, with which weights, and the tokens in the order of their experts."""

from ms4_kernels.routing.cpu import top_k_lower_id
from ms4_kernels.routing.interface import ExpertOrder, TileList, route, sort_by_expert, tile_list

__all__ = ["ExpertOrder", "TileList", "route", "sort_by_expert", "tile_list", "top_k_lower_id"]
