"""Frozen quantised weights inside the network: linear layers and expert stacks that hold codes and scales as buffers.

Frameworks cast floating parameters and buffers without a word (``model.to(torch.bfloat16)``, DeepSpeed, accelerate). So codes are bytes and
fp32 scales are kept as the integers of the same bits, which no cast to a floating type touches. Such weights are not parameters:
``model.parameters()`` misses them, :func:`logical_weights` and :func:`num_parameters` do not.
Exercise it: ``pytest tests/ms4_train/model/test_quantised.py``.

Not covered: training a quantised weight; quantised embeddings, heads, norms and routers, which no public layout has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ms4_kernels.quantised import QuantisedWeight, quantised_linear
from ms4_train.model.linear import Linear


class _Holder(nn.Module):
    """A module whose buffers are the parts of a quantised weight, named as the fields of its class.

    A further buffer, empty and not saved, has the compute type: casts of the module change its type, moves its device, as they would those
    of a parameter.
    """

    _kind: type[QuantisedWeight]
    _like: Tensor

    def _hold(self, weight: QuantisedWeight, dtype: torch.dtype) -> None:
        self._kind = type(weight)
        for field, part in zip(dataclasses.fields(weight), weight.tensors, strict=True):
            self.register_buffer(field.name, _to_bits(part))
        self.register_buffer("_like", torch.empty(0, dtype=dtype, device=weight.device), persistent=False)

    def value(self) -> QuantisedWeight:
        """The weight; its parts share memory with the buffers."""
        parts: list[Any] = [_from_bits(self.get_buffer(field.name)) for field in dataclasses.fields(self._kind)]
        return self._kind(*parts)

    @property
    def dtype(self) -> torch.dtype:
        """The compute type: of dequantised values where nothing else decides, and of adapters."""
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self._like.device

    @property
    def logical_shape(self) -> torch.Size:
        """Of the values."""
        return self.value().shape


class QuantisedLinear(_Holder, nn.Linear):
    """A linear layer without bias over a frozen quantised matrix; an ``nn.Linear`` to whoever asks, PEFT for one.

    Args:
        weight: [out_features, in_features]; may be on the meta device.
        dtype: compute type of :attr:`weight`; the forward pass takes its input's.
    """

    def __init__(self, weight: QuantisedWeight, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)  # not nn.Linear's, which would make a parameter
        self.out_features, self.in_features = weight.shape
        self.register_parameter("bias", None)
        self._hold(weight, dtype)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The values in the compute type, dequantised at each access: a new tensor, whose changes go nowhere."""
        return self.value().dequantise(self.dtype)

    def reset_parameters(self) -> None:
        """Refuse: there is nothing to draw at random."""
        raise TypeError("a quantised linear layer cannot be initialised at random")

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input @ W^T``; keeps no dequantised copy for the backward pass."""
        return quantised_linear(input, self.value())

    def extra_repr(self) -> str:
        """Sizes, kind and compute type."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {_describe(self)}"


class QuantisedStack(_Holder):
    """A frozen quantised stack of experts in the place of a parameter of ``Mistral4Experts``; not called, but read by :meth:`value`.

    Args:
        weight: [experts, O, I]; may be on the meta device.
        dtype: compute type.
    """

    def __init__(self, weight: QuantisedWeight, dtype: torch.dtype) -> None:
        super().__init__()
        if len(weight.shape) != 3:
            raise ValueError(f"a stack of experts has three dimensions, this weight is {list(weight.shape)}")
        self._hold(weight, dtype)

    @property
    def shape(self) -> torch.Size:
        """Of the values, [experts, O, I]."""
        return self.logical_shape

    def keep_experts(self, start: int, stop: int) -> None:
        """Drop all experts but ``[start, stop)``, and free their memory."""
        for field in dataclasses.fields(self._kind):
            setattr(self, field.name, self.get_buffer(field.name)[start:stop].clone())  # clone: a view would keep the whole stack alive

    def extra_repr(self) -> str:
        """Shape, kind and compute type."""
        return f"shape={list(self.shape)}, {_describe(self)}"


@dataclass(frozen=True)
class LogicalWeight:
    """A weight of the network, whether it is a parameter or quantised.

    Attributes:
        name: of the parameter, or the one it would have.
    """

    name: str
    shape: torch.Size
    trained: bool


def put_quantised(model: nn.Module, name: str, weight: QuantisedWeight, dtype: torch.dtype) -> None:
    """Replace a parameter by a quantised weight.

    Args:
        model: built on any device, meta too.
        name: of the parameter: ``...q_a_proj.weight`` of a plain linear layer, ``...mlp.experts.gate_up_proj``.
        weight: of the parameter's shape, except that a stack may hold fewer experts.
        dtype: compute type.

    Raises:
        ValueError: the parameter is neither of a linear layer nor a stack of experts, or the shapes differ.
    """
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    parameter = owner.get_parameter(leaf)
    if parameter.ndim == 3:
        if weight.shape[1:] != parameter.shape[1:]:
            raise ValueError(f"{name}: a weight {list(weight.shape)} for a stack {list(parameter.shape)}")
        delattr(owner, leaf)
        setattr(owner, leaf, QuantisedStack(weight, dtype).train(owner.training))
        return
    if type(owner) not in (nn.Linear, Linear) or owner.bias is not None:
        raise ValueError(f"{name} cannot be quantised: it is neither of a plain linear layer nor a stack of experts")
    if weight.shape != parameter.shape:
        raise ValueError(f"{name}: a weight {list(weight.shape)} for a layer {list(parameter.shape)}")
    parent, _, child = owner_name.rpartition(".")
    setattr(model.get_submodule(parent), child, QuantisedLinear(weight, dtype).train(owner.training))


def quantised_modules(model: nn.Module) -> Iterator[tuple[str, QuantisedLinear | QuantisedStack]]:
    """The modules that hold quantised weights, by name."""
    for name, module in model.named_modules():
        if isinstance(module, QuantisedLinear | QuantisedStack):
            yield name, module


def is_quantised(model: nn.Module) -> bool:
    """Whether any weight is quantised."""
    return next(quantised_modules(model), None) is not None


def quantised_bytes(model: nn.Module) -> int:
    """Bytes of all codes and scales."""
    return sum(module.value().num_bytes for _, module in quantised_modules(model))


def logical_weights(model: nn.Module) -> Iterator[LogicalWeight]:
    """Every parameter, then every quantised weight."""
    for name, parameter in model.named_parameters():
        yield LogicalWeight(name, parameter.shape, parameter.requires_grad)
    for name, module in quantised_modules(model):
        yield LogicalWeight(f"{name}.weight" if isinstance(module, QuantisedLinear) else name, module.logical_shape, trained=False)


def num_parameters(model: nn.Module) -> int:
    """Values of all parameters and quantised weights."""
    return sum(weight.shape.numel() for weight in logical_weights(model))


def _to_bits(part: Tensor) -> Tensor:
    return part.view(torch.int32) if part.dtype == torch.float32 else part


def _from_bits(part: Tensor) -> Tensor:
    return part.view(torch.float32) if part.dtype == torch.int32 else part


def _describe(holder: _Holder) -> str:
    return f"{holder._kind.__name__}, dtype={str(holder.dtype).removeprefix('torch.')}"
