"""Frozen weights in eight and four bits: their arithmetic, the containers that hold them, and a linear layer over them."""

from ms4_kernels.quantised.fp8 import (
    E4M3_MAX,
    count_saturated,
    dequantise_fp8,
    fit_fp8_scale,
    fuse_fp8_pair,
    quantise_fp8,
)
from ms4_kernels.quantised.linear import quantised_linear
from ms4_kernels.quantised.nvfp4 import dequantise_nvfp4
from ms4_kernels.quantised.weight import Fp8Weight, Nvfp4Weight, QuantisedWeight

__all__ = [
    "E4M3_MAX",
    "Fp8Weight",
    "Nvfp4Weight",
    "QuantisedWeight",
    "count_saturated",
    "dequantise_fp8",
    "dequantise_nvfp4",
    "fit_fp8_scale",
    "fuse_fp8_pair",
    "quantise_fp8",
    "quantised_linear",
]
