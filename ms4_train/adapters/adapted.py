"""What all modules with adapters on them share: several adapters by name, of which some act, and the weight's bits from before a merge.

Exercise it: ``pytest tests/ms4_train/adapters/test_adapted.py``.

Shape suffixes: o, i rows and columns of the adapted weight.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ms4_train.errors import AdapterError


class Low(NamedTuple):
    """Rank of one low-rank pair, and the factor of its product."""

    rank: int
    scale: float


class Wrapper(nn.Module):
    """A module in the place of another, which it lets through: attributes that it lacks are those of the module that runs."""

    _runs = "base_layer"

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == self._runs or name.startswith("__"):
                raise
            return getattr(super().__getattr__(self._runs), name)


class AdaptedModule(Wrapper):
    """A module with one weight, ``base_layer``, and adapters on it.

    Attributes:
        scales: factor of each adapter's product, by the adapter's name.
        active: the adapters that act, in the order in which they were named.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base
        self.scales: dict[str, float] = {}
        self.active: tuple[str, ...] = ()
        self._unmerged: Tensor | None = None

    @property
    def acting(self) -> tuple[str, ...]:
        """The adapters whose products the forward pass adds: the active ones, unless they are in the weight already."""
        return () if self._unmerged is not None else self.active

    @property
    def adapters(self) -> tuple[str, ...]:
        """All adapters on this module."""
        return tuple(self.scales)

    def names_of(self, adapter: str | None) -> tuple[str, ...]:
        """The adapters whose products belong to a row for this adapter, or, for None, to one for the model as it stands.

        Raises:
            AdapterError: the weight is merged, so that no row can see the base without the merged adapters.
        """
        if adapter is None:
            return self.acting
        if self.is_merged:
            raise AdapterError("the model's adapters are merged.", key=adapter, fix="unmerge them first.")
        return (adapter,) if adapter in self.scales else ()

    def remove(self, name: str) -> None:
        """Take an adapter away, merged ones aside."""
        raise NotImplementedError

    def forget(self, name: str) -> None:
        """Take an adapter off the lists."""
        del self.scales[name]
        self.active = tuple(other for other in self.active if other != name)

    def changed_weight(self) -> Tensor:
        """The weight with the acting adapters in it, at least fp32, in the shape and on the device of the weight."""
        raise NotImplementedError

    def keep_unmerged(self, before_oi: Tensor) -> None:
        """Rest: the weight holds the adapters now, and had these bits before."""
        self._unmerged = before_oi

    @torch.no_grad()
    def unmerge(self) -> None:
        """Give the weight the bits it had before a merge."""
        if self._unmerged is not None:
            self.base_layer.weight.copy_(self._unmerged)  # type: ignore[operator,union-attr]
            self._unmerged = None

    @property
    def is_merged(self) -> bool:
        """Whether the adapters are in the weight."""
        return self._unmerged is not None


def wide(tensor: Tensor) -> Tensor:
    """In fp32, or fp64 where it is that already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
