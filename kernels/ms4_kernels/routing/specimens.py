"""The routing kernels in the forms that a layer of Mistral Small 4 launches, for compilation ahead of time.

Exercise it: ``pytest tests/kernels/ms4_kernels/routing/test_specimens.py``.
"""

from __future__ import annotations

from typing import Any

from ms4_kernels.routing import router_triton, sort_triton, tile_triton
from ms4_kernels.specimen import Specimen

_EXPERTS, _TOP_K, _ADAPTERS = 128, 4, 8
_NUM_WARPS = router_triton.NUM_WARPS  # as in the other two


def specimens() -> list[Specimen]:
    """Every kernel at 128 experts, top 4, with fp32 and bf16 logits; sorting and tiles also with 8 adapters (1152 segments)."""
    return [*_router(), *_sort(), *_tiles()]


def _specimen(name: str, kernel: Any, arguments: dict[str, str], constants: dict[str, Any], representative: bool) -> Specimen:
    return Specimen("routing", name, kernel, arguments, constants, _NUM_WARPS, 3, is_gemm=False, representative=representative)


def _router() -> list[Specimen]:
    found = []
    for dtype in ("fp32", "bf16"):
        for renormalize in (True, False):
            constants = router_triton.constants(_EXPERTS, _TOP_K, renormalize)
            label = f"{dtype}{'' if renormalize else ' without renormalisation'}"
            shared = {"weights": "*fp32:16", "ids": "*i64:16", "num_tokens": "i32:16"}
            choose = shared | {"logits": f"*{dtype}:16", "scale": "fp32"}
            found.append(_specimen(f"choose {label}", router_triton.choose_kernel, choose, constants, dtype == "fp32"))
            gradient = shared | {"dweights": "*fp32:16", "dlogits": f"*{dtype}:16", "inverse_scale": "fp32"}
            if renormalize:
                constants = constants | {"logits": None}
            else:
                gradient = gradient | {"logits": f"*{dtype}:16"}
            found.append(_specimen(f"gradient {label}", router_triton.gradient_kernel, gradient, constants, dtype == "fp32"))
    return found


def _sort() -> list[Specimen]:
    found = []
    for adapters in (0, _ADAPTERS):
        label = f" with {adapters} adapters" if adapters else ""
        pointers = {"ids": "*i64:16"} | ({"adapters": "*i64:16"} if adapters else {})
        sizes = {"num_pairs": "i32:16", "num_experts": "i32:16", "num_adapters": "i32", "num_segments": "i32"}
        constants: dict[str, Any] = {"TOP_K": _TOP_K, "HAS_ADAPTERS": bool(adapters), "BLOCK_R": sort_triton.BLOCK_R}
        if not adapters:
            constants["adapters"] = None
        count, count_constants = pointers | sizes | {"counts": "*i32:16"}, constants | {"BLOCK_S": sort_triton.BLOCK_S}
        found.append(_specimen(f"count{label}", sort_triton.count_kernel, count, count_constants, not adapters))
        place = pointers | sizes | {"before": "*i32:16", "totals": "*i32:16", "ends": "*i32:16", "pairs": "*i64:16", "rows": "*i64:16"}
        place |= {"num_rows": "i32:16"}
        found.append(_specimen(f"place{label}", sort_triton.place_kernel, place, constants, not adapters))
    scan = {"counts": "*i32:16", "totals": "*i32:16", "num_blocks": "i32", "num_segments": "i32"}
    blocks = {"SCAN_BLOCKS": sort_triton.SCAN_BLOCKS, "SCAN_SEGMENTS": sort_triton.SCAN_SEGMENTS}
    return [*found, _specimen("scan", sort_triton.scan_kernel, scan, blocks, True)]


def _tiles() -> list[Specimen]:
    arguments = {"ends": "*i32:16", "experts": "*i32:16", "starts": "*i32", "stops": "*i32", "num_experts": "i32:16"}
    arguments |= {"num_tiles": "i32", "block_rows": "i32:16"}
    return [
        _specimen(f"tiles of {count} segments", tile_triton.tiles_kernel, arguments, tile_triton.constants(count), count == _EXPERTS)
        for count in (_EXPERTS, _EXPERTS * (_ADAPTERS + 1))
    ]
