"""The compiled forms of latent attention that serving the release uses, over caches of bf16, E4M3 and fp32.

Exercise it: ``pytest tests/kernels/ms4_kernels/latent_attention/test_specimens.py``, and ``make kernels-report``, which compiles them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ms4_kernels.latent_attention.attend_kernel import attend_kernel
from ms4_kernels.latent_attention.combine_kernel import combine_splits_kernel
from ms4_kernels.latent_attention.launch import attend_constants, attend_tile
from ms4_kernels.latent_attention.write_kernel import write_kernel
from ms4_kernels.specimen import Specimen

_HEADS, _LATENT, _WIDTH, _PAGE = 32, 256, 320, 32
_TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_POOLS = {"bf16": "*bf16:16", "fp8": "*u8:16", "fp32": "*fp32:16"}


def specimens() -> list[Specimen]:
    """Every shipped form; `make test` compiles those of bf16 queries that are split, and the small kernels."""
    return [*_attend(), *_small()]


def _attend() -> Iterator[Specimen]:
    for query, pool in (("bf16", "bf16"), ("bf16", "fp8"), ("fp32", "fp32"), ("fp32", "fp8")):
        for split in (False, True):
            dtype = _TYPES[query]
            tile = attend_tile(_HEADS, dtype)
            constants = attend_constants(tile, _HEADS, _LATENT, _WIDTH, _PAGE, dtype)
            constants |= {"IS_FP8": pool == "fp8", "NATIVE": pool == "fp8", "IS_SPLIT": split} | ({} if split else {"lse_ptr": None})
            yield Specimen(
                operation="latent_attention",
                name=" ".join(["attend", query, f"{pool} cache", *["split"] * split]),
                kernel=attend_kernel,
                arguments={
                    "query_ptr": f"*{query}:16",
                    "pool_ptr": _POOLS[pool],
                    **{f"{name}_ptr": "*i32:16" for name in ("table", "sequence", "position")},
                    "out_ptr": "*fp32:16" if split else f"*{query}:16",
                    "table_width": "i32",
                    "num_rows": "i32:16",
                    "scale": "fp32",
                }
                | ({"lse_ptr": "*fp32:16"} if split else {}),
                constants=constants,
                num_warps=tile.num_warps,
                num_stages=tile.num_stages,
                is_gemm=query == "bf16",
                representative=split and query == "bf16",
            )


def _small() -> Iterator[Specimen]:
    small = {"operation": "latent_attention", "num_warps": 4, "num_stages": 3, "is_gemm": False}
    pointers = {"part_ptr": "*fp32:16", "lse_ptr": "*fp32:16", "out_ptr": "*bf16:16", "num_splits": "i32", "num_rows": "i32:16"}
    constants = {"LATENT": _LATENT, "BLOCK_C": _LATENT}
    yield Specimen(name="combine splits", kernel=combine_splits_kernel, arguments=pointers, constants=constants, **small)
    for pool, kind in _POOLS.items():
        source = "fp32" if pool == "fp32" else "bf16"
        arguments = {"pool_ptr": kind, "latent_ptr": f"*{source}:16", "slot_ptr": "*i64:16", "latent_stride_t": "i32:16"}
        constants = {"WIDTH": _WIDTH, "IS_FP8": pool == "fp8", "BLOCK_M": 512}
        yield Specimen(
            name=f"write {pool}", kernel=write_kernel, arguments=arguments, constants=constants, representative=pool == "fp8", **small
        )
