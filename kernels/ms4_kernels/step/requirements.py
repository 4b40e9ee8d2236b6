"""What the compiled step takes: types, shapes and places of weights and pools, checked before an address is handed out.

Exercise it: ``pytest tests/kernels/ms4_kernels/step/test_requirements.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ms4_kernels.native.library import library, readable, why_not
from ms4_kernels.step.structures import KINDS
from ms4_kernels.step.weights import ExpertStacks, LayerWeights, Matrix, NetworkWeights, Projection

_MOST_SLOTS = 2**31 - 1  # the kernels number them in 32 bits
_Shape = tuple[str, Sequence[int], tuple[int, ...]]


def against(weights: NetworkWeights, pools: Sequence[Tensor]) -> str:
    """Why the compiled step cannot serve; empty where it can.

    It wants plain contiguous tensors in the CPU's memory: matrices fp32, bf16, FP8 or NVFP4; norms, routers and adapters fp32 or bf16.
    """
    if not weights.layers or len(pools) != len(weights.layers):
        return f"{len(weights.layers)} layers and {len(pools)} pools"
    if not 0 < weights.top_k <= weights.layers[0].router.shape[0] or weights.rope % 2 or weights.llama4_original < 1:
        return f"top_k {weights.top_k}, {weights.rope} rotary lanes, llama4_original {weights.llama4_original}"
    if weights.frequencies_f.dtype != torch.float32 or not _is_plain(weights.frequencies_f):
        return "the rotary frequencies are no plain fp32 tensor"
    for pool in pools:
        if pool.dtype not in KINDS or pool.dtype != pools[0].dtype or pool.shape != pools[0].shape or not _is_plain(pool):
            return f"a pool of {pool.dtype} {list(pool.shape)} on {pool.device}"
        if pool.ndim != 3 or pool.shape[2] != weights.latent_rank + weights.rope:
            return f"pools {list(pool.shape)} for {weights.latent_rank} + {weights.rope} values a token"
    if pools[0].shape[0] * pools[0].shape[1] > _MOST_SLOTS:
        return f"pools of {pools[0].shape[0]} blocks of {pools[0].shape[1]} tokens"
    for name, matrix, is_plain_only in _every_matrix(weights):
        if reason := _against_matrix(matrix, is_plain_only):
            return f"{name} {reason}"
    for name, given, wanted in _every_shape(weights):
        if tuple(given) != wanted:
            return f"{name} is {list(given)}, expected {list(wanted)}"
    return "" if library() is not None else why_not()


def _against_matrix(matrix: Matrix, is_plain_only: bool) -> str:
    if not isinstance(matrix, Tensor):
        return "is quantised" if is_plain_only else "" if all(map(_is_plain, matrix.tensors)) else "has parts that are not plain tensors"
    if matrix.dtype not in (torch.float32, torch.bfloat16):
        return f"is {str(matrix.dtype).removeprefix('torch.')}"
    return "" if _is_plain(matrix) else "is not a plain contiguous tensor in the CPU's memory"


def _is_plain(tensor: Tensor) -> bool:
    return readable(tensor) and tensor.is_contiguous()


def _every_matrix(weights: NetworkWeights) -> Iterator[tuple[str, Matrix, bool]]:
    """Name, matrix, and whether it must not be quantised."""
    yield "final_norm", weights.final_norm, True
    yield from _of_projection("head", weights.head)
    for number, layer in enumerate(weights.layers):
        prefix = f"layer {number} "
        yield prefix + "router", layer.router, True
        for name, vector in layer.vectors():
            yield prefix + name, vector, True
        for name, projection in layer.projections():
            yield from _of_projection(prefix + name, projection)
        yield prefix + "gate_up", layer.experts.gate_up, False
        yield prefix + "down", layer.experts.down, False
        for lora in _loras(layer.experts):
            yield from ((prefix + "adapter", stack, True) for stack in lora if stack is not None)


def _of_projection(name: str, projection: Projection) -> Iterator[tuple[str, Matrix, bool]]:
    yield name, projection.weight, False
    for pairs in projection.adapters.values():
        for pair in pairs:
            yield from ((f"{name} adapter", factor, True) for factor in pair[:2])


def _loras(experts: ExpertStacks) -> Iterable[tuple[Tensor | None, ...]]:
    return (lora.stacks for loras in experts.adapters.values() for lora in loras)


def _every_shape(weights: NetworkWeights) -> Iterator[_Shape]:
    """Name, shape, and the shape that the other weights ask for: what is read beyond a tensor's end would be anything."""
    d = weights.final_norm.shape[0]
    yield "head", weights.head.weight.shape, (weights.head.weight.shape[0], d)
    yield from _adapter_shapes("head", weights.head)
    yield "frequencies", weights.frequencies_f.shape, (weights.rope // 2,)
    first = weights.layers[0]
    for number, layer in enumerate(weights.layers):
        for name, given, wanted in _layer_shapes(weights, layer, first, d):
            yield f"layer {number} {name}", given, wanted


def _layer_shapes(weights: NetworkWeights, layer: LayerWeights, first: LayerWeights, d: int) -> Iterator[_Shape]:
    heads, c = weights.num_heads, weights.latent_rank
    rank, (experts, _, width), shared = first.q_a.weight.shape[0], first.experts.down.shape, first.shared_gate.weight.shape[0]
    wanted = {
        "input_norm": (d,),
        "q_a_norm": (rank,),
        "kv_a_norm": (c,),
        "post_norm": (d,),
        "q_a": (rank, d),
        "q_b": (heads * (weights.nope + weights.rope), rank),
        "kv_a": (c + weights.rope, d),
        "kv_b": (heads * (weights.nope + weights.value), c),
        "o": (d, heads * weights.value),
        "shared_gate": (shared, d),
        "shared_up": (shared, d),
        "shared_down": (d, shared),
    }
    for name, vector in layer.vectors():
        yield name, vector.shape, wanted[name]
    for name, projection in layer.projections():
        yield name, projection.weight.shape, wanted[name]
        yield from _adapter_shapes(name, projection)
    yield "router", layer.router.shape, (experts, d)
    yield "gate_up", layer.experts.gate_up.shape, (experts, 2 * width, d)
    yield "down", layer.experts.down.shape, (experts, d, width)
    for a_up, b_up, a_down, b_down in _loras(layer.experts):
        for a, b, outputs, inputs in ((a_up, b_up, 2 * width, d), (a_down, b_down, d, width)):
            if a is not None and b is not None:
                yield "adapter A", a.shape, (experts, a.shape[-2], inputs)
                yield "adapter B", b.shape, (experts, outputs, a.shape[-2])


def _adapter_shapes(name: str, projection: Projection) -> Iterator[_Shape]:
    outputs, inputs = projection.weight.shape
    for pairs in projection.adapters.values():
        for a_ri, b_or, _ in pairs:
            yield f"{name} adapter A", a_ri.shape, (a_ri.shape[0], inputs)
            yield f"{name} adapter B", b_or.shape, (outputs, a_ri.shape[0])
