"""A module that is trained whole beside an adapter (``modules_to_save``): a copy that is trained, and the original that waits.

Names are PEFT's: ``X.original_module.weight`` and ``X.modules_to_save.default.weight``.
Exercise it: ``pytest tests/ms4_train/adapters/test_trained_copy.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ms4_train.adapters.adapted import Wrapper
from ms4_train.adapters.row_parts import row_parts
from ms4_train.weights.reading.shares import copied_module


class TrainedCopy(Wrapper):
    """A module with copies of it, by adapter, of which one runs.

    Attributes:
        active: the adapter whose copy runs; none runs the original.
    """

    _runs = "original_module"

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original_module = original.requires_grad_(False)
        self.modules_to_save = nn.ModuleDict()
        self.active: tuple[str, ...] = ()

    @property
    def adapters(self) -> tuple[str, ...]:
        """All adapters with a copy."""
        return tuple(self.modules_to_save)

    @property
    def running(self) -> nn.Module:
        """The module that runs."""
        return self._of(self.active)

    def add(self, name: str) -> None:
        """Add a copy that does not run yet."""
        self.modules_to_save[name] = copied_module(self.original_module).requires_grad_(True)

    def remove(self, name: str) -> None:
        """Take a copy away."""
        del self.modules_to_save[name]
        self.active = tuple(other for other in self.active if other != name)

    def names_of(self, adapter: str | None) -> tuple[str, ...]:
        """The adapter whose copy a row for this adapter, or for None, goes through; () for the original."""
        if adapter is None:
            return self.active[:1]
        return (adapter,) if adapter in self.modules_to_save else ()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module that runs; where rows are for several adapters, each as its own, which only modules of one tensor can do."""
        parts = row_parts(self.names_of, args[0].shape[0] if args and isinstance(args[0], Tensor) else 0)
        if len(parts) == 1:
            return self._of(parts[0].names)(*args, **kwargs)
        (x,) = args
        found = [self._of(names)(x[start:stop], **kwargs) for names, start, stop in parts]
        return torch.cat(found) if isinstance(found[0], Tensor) else tuple(torch.cat(values) for values in zip(*found, strict=True))

    def _of(self, names: tuple[str, ...]) -> nn.Module:
        return self.modules_to_save[names[0]] if names else self.original_module

    def __getattr__(self, name: str) -> Any:
        # Attributes are those of the running module: a norm's weight is read from outside, for one.
        active = self.__dict__.get("active")
        if active and name not in ("original_module", "modules_to_save") and not name.startswith("__"):
            return getattr(self.modules_to_save[active[0]], name)
        return super().__getattr__(name)

    @property
    def gradient_checkpointing(self) -> bool:
        """Of the module, where it has one: the vision tower."""
        return self.running.gradient_checkpointing  # type: ignore[return-value]

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enabled: bool) -> None:
        for module in (self.original_module, *self.modules_to_save.values()):
            module.gradient_checkpointing = enabled  # type: ignore[assignment]
