"""The C structures of ``native/step_types.h``, and filling them in: pointers to weights where they lie, once for a model.

Exercise it: ``pytest tests/kernels/ms4_kernels/step/test_structures.py``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ms4_kernels.moe.lora import ExpertLora
from ms4_kernels.quantised import Fp8Weight, Nvfp4Weight
from ms4_kernels.step.weights import ExpertStacks, LayerWeights, LowRank, Matrix, NetworkWeights, Projection

_INT, _FLOAT, _POINTER = ctypes.c_int32, ctypes.c_float, ctypes.c_void_p
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float8_e4m3fn: 2}
"""What the kernels call the types of plain tensors; the third is one of pools only."""
_FP8, _NVFP4 = 2, 3


class CStack(ctypes.Structure):
    """``Stack`` of ``native/weights.h``."""

    _fields_ = [
        ("kind", _INT),
        ("groups", _INT),
        ("data", _POINTER),
        ("expert_stride", ctypes.c_int64),
        ("scale", _POINTER),
        ("block_scale", _POINTER),
    ]


class CMatrix(ctypes.Structure):
    """``Matrix``."""

    _fields_ = [("rows", _INT), ("columns", _INT), ("rounds", _INT), ("stack", CStack)]


class CLowRank(ctypes.Structure):
    """``LowRank``."""

    _fields_ = [("a", CMatrix), ("b", CMatrix), ("scale", _FLOAT)]


class CAdapter(ctypes.Structure):
    """``Adapter``."""

    _fields_ = [("count", _INT), ("rank", _INT), ("parts", _POINTER)]


class CProjection(ctypes.Structure):
    """``Projection``."""

    _fields_ = [("weight", CMatrix), ("adapters", _INT), ("adapter", _POINTER)]


class CLayer(ctypes.Structure):
    """``Layer``."""

    _fields_ = [
        *((name, CMatrix) for name in ("input_norm", "q_a_norm", "kv_a_norm", "post_norm", "router")),
        *((name, CProjection) for name in ("q_a", "q_b", "kv_a", "kv_b", "o", "gate_up", "down")),
        *((name, CProjection) for name in ("shared_gate", "shared_up", "shared_down")),
        ("pool", _POINTER),
    ]


class CNetwork(ctypes.Structure):
    """``Network``."""

    _fields_ = [
        *((name, _INT) for name in ("num_layers", "hidden", "heads", "nope", "rope", "value", "latent", "q_rank", "experts", "top_k")),
        *((name, _INT) for name in ("width", "shared_width", "vocabulary", "renormalise", "llama4_original")),
        *((name, _INT) for name in ("pool_kind", "block_size", "num_blocks", "max_rank")),
        *((name, _FLOAT) for name in ("norm_eps", "latent_norm_eps", "routed_scale", "attention_scale", "cos_sin_factor", "llama4_beta")),
        ("frequencies", _POINTER),
        ("layers", _POINTER),
        ("final_norm", CMatrix),
        ("head", CProjection),
    ]


class CStep(ctypes.Structure):
    """``Step``."""

    _fields_ = [
        *((name, _INT) for name in ("rows", "sequences", "wanted", "threads")),
        *(
            (name, _POINTER)
            for name in ("embedding", "lengths", "starts", "table_first", "tables", "adapters", "wanted_rows", "out", "arena")
        ),
    ]


STRUCTURES = (CMatrix, CLowRank, CAdapter, CProjection, CLayer, CNetwork, CStep)
"""In the order of ``ms4_step_sizes``."""


class NetworkDescription:
    """A network for the kernels; keeps alive whatever it points to.

    Args:
        weights: of a kind that ``ms4_kernels.step.against`` has nothing against.
        pools: the layers' latents, [n, s, m] each.

    Attributes:
        c: the structure.
    """

    def __init__(self, weights: NetworkWeights, pools: Sequence[Tensor]) -> None:
        self._kept: list[object] = [weights, list(pools)]
        self._max_rank = 1
        self._rounds = int(weights.dequantised_to == torch.bfloat16)
        first = weights.layers[0]
        head = self._projection(weights.head)
        layers = (CLayer * len(weights.layers))(*(self._layer(layer, pool) for layer, pool in zip(weights.layers, pools, strict=True)))
        self._kept.append(layers)
        self.c = CNetwork(
            num_layers=len(weights.layers),
            hidden=weights.final_norm.shape[0],
            heads=weights.num_heads,
            nope=weights.nope,
            rope=weights.rope,
            value=weights.value,
            latent=weights.latent_rank,
            q_rank=first.q_a.weight.shape[0],
            experts=first.router.shape[0],
            top_k=weights.top_k,
            width=first.experts.down.shape[2],
            shared_width=first.shared_gate.weight.shape[0],
            vocabulary=weights.head.weight.shape[0],
            renormalise=int(weights.renormalise),
            llama4_original=weights.llama4_original,
            pool_kind=KINDS[pools[0].dtype],
            block_size=pools[0].shape[1],
            num_blocks=pools[0].shape[0],
            max_rank=self._max_rank,
            norm_eps=weights.norm_eps,
            latent_norm_eps=weights.latent_norm_eps,
            routed_scale=weights.routed_scale,
            attention_scale=weights.attention_scale,
            cos_sin_factor=weights.cos_sin_factor,
            llama4_beta=weights.llama4_beta,
            frequencies=weights.frequencies_f.data_ptr(),
            layers=ctypes.addressof(layers),
            final_norm=_matrix(weights.final_norm[None]),
            head=head,
        )

    def _layer(self, layer: LayerWeights, pool: Tensor) -> CLayer:
        gate_up, down = _expert_projections(layer.experts)
        return CLayer(
            router=_matrix(layer.router),
            gate_up=self._projection(gate_up),
            down=self._projection(down),
            pool=pool.data_ptr(),
            **{name: _matrix(vector[None]) for name, vector in layer.vectors()},
            **{name: self._projection(projection) for name, projection in layer.projections()},
        )

    def _projection(self, projection: Projection) -> CProjection:
        adapters = [self._adapter(projection.adapters.get(number, ())) for number in range(max(projection.adapters, default=-1) + 1)]
        array = (CAdapter * len(adapters))(*adapters)
        self._kept += [projection, array]
        return CProjection(_matrix(projection.weight, self._rounds), len(adapters), ctypes.addressof(array) if adapters else None)

    def _adapter(self, pairs: Sequence[LowRank]) -> CAdapter:
        parts = (CLowRank * len(pairs))(*(CLowRank(_matrix(pair.a_ri), _matrix(pair.b_or), pair.scale) for pair in pairs))
        ranks = [pair.a_ri.shape[-2] for pair in pairs]
        self._max_rank = max(self._max_rank, *ranks) if ranks else self._max_rank
        self._kept.append(parts)
        return CAdapter(len(pairs), sum(ranks), ctypes.addressof(parts))


def _expert_projections(experts: ExpertStacks) -> tuple[Projection, Projection]:
    """The two stacks, each with its own pairs of every adapter."""
    gate_up, down = Projection(experts.gate_up), Projection(experts.down)
    for number, loras in experts.adapters.items():
        gate_up.adapters[number] = tuple(pair for lora in loras for pair in _gate_up_pairs(lora))
        down.adapters[number] = tuple(pair for lora in loras for pair in _down_pairs(lora))
    return gate_up, down


def _gate_up_pairs(lora: ExpertLora) -> list[LowRank]:
    if lora.gate_up_a_erd is None or lora.gate_up_b_eir is None:
        return []
    return [LowRank(lora.gate_up_a_erd, lora.gate_up_b_eir, lora.gate_up_scale)]


def _down_pairs(lora: ExpertLora) -> list[LowRank]:
    if lora.down_a_ern is None or lora.down_b_edr is None:
        return []
    return [LowRank(lora.down_a_ern, lora.down_b_edr, lora.down_scale)]


def _matrix(matrix: Matrix, rounds: int = 0) -> CMatrix:
    rows, columns = matrix.shape[-2:]
    if isinstance(matrix, Tensor):
        return CMatrix(rows, columns, 0, CStack(KINDS[matrix.dtype], 1, matrix.data_ptr(), rows * columns, None, None))
    if isinstance(matrix, Fp8Weight):
        scale = matrix.scale
        stack = CStack(_FP8, scale.shape[-1], matrix.codes.data_ptr(), rows * columns, scale.data_ptr(), None)
        return CMatrix(rows, columns, rounds, stack)
    assert isinstance(matrix, Nvfp4Weight)
    stack = CStack(
        _NVFP4,
        matrix.global_scale.shape[-1],
        matrix.codes.data_ptr(),
        rows * columns,
        matrix.global_scale.data_ptr(),
        matrix.block_scale.data_ptr(),
    )
    return CMatrix(rows, columns, rounds, stack)
