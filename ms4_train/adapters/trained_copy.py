"""A module that is trained whole beside an adapter (``modules_to_save``): a copy that is trained, and the original that waits.

Names are PEFT's: ``X.original_module.weight`` and ``X.modules_to_save.default.weight``.
Exercise it: ``pytest tests/ms4_train/adapters/test_trained_copy.py``.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from ms4_train.adapters.adapted import Wrapper


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
        return self.modules_to_save[self.active[0]] if self.active else self.original_module

    def add(self, name: str) -> None:
        """Add a copy that does not run yet."""
        self.modules_to_save[name] = copy.deepcopy(self.original_module).requires_grad_(True)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module that runs."""
        return self.running(*args, **kwargs)

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
