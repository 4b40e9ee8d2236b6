"""Adapters that requests may name: loaded onto the engine's model and dropped again while other requests run.

Nothing is copied or merged. A loaded adapter lies on the shared model beside whatever adapters act on it, for instance the one that a run
is training, and acts on the rows of requests that name it alone (``model.row_segments``). A request that names none sees the model as it
stands. Exercise it: ``pytest tests/ms4_train/inference/test_adapters.py``.

With experts spread over processes all of these load the same adapters in the same order, and rows travel with the adapter they are for.

Not covered, and refused when loading: modules saved whole whose output is not one row for each row of one input (an attention block, for
one).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ms4_train.adapters.attach import adapted_modules, adapter_names
from ms4_train.adapters.drop import drop_adapter
from ms4_train.adapters.files import load_adapter
from ms4_train.adapters.merge import is_merged
from ms4_train.adapters.names import check_adapter_name
from ms4_train.adapters.several import unknown_adapter
from ms4_train.adapters.targets import VISION_PREFIXES
from ms4_train.adapters.trained_copy import TrainedCopy
from ms4_train.errors import AdapterError
from ms4_train.model.moe import GatedMLP, Mistral4Router
from ms4_train.model.network import Mistral4ForCausalLM
from ms4_train.model.norm import RMSNorm

_BY_ROW = (nn.Linear, nn.Embedding, RMSNorm, Mistral4Router, GatedMLP)
_MERGE = "merge it into the model (ms4 model merge) and serve that."


class AdapterRegistry:
    """The adapters of one model by name. Only the thread that runs the model loads, drops and refreshes; any may read.

    Args:
        model: the engine's.
        base_fingerprint: of the model (``weights.base_fingerprint`` of its folder), may be set later; adapters that record another base are
            refused. None: not compared.

    Attributes:
        names: those that a request may name: loaded ones, and ones that were on the model when it was last looked at (``refresh``).
        version: counts changes.
        refuses: set by a runner that is open: says why it cannot serve the model as it is now, with all its adapters; empty where it can.
    """

    def __init__(self, model: Mistral4ForCausalLM, base_fingerprint: str | None = None) -> None:
        self.base_fingerprint = base_fingerprint
        self.version = 0
        self.refuses: Callable[[], str] = str
        self.names: tuple[str, ...] = ()
        self._model = model
        self._generations: dict[str, int] = {}
        self.refresh()

    @property
    def loaded(self) -> tuple[str, ...]:
        """Those that were loaded here, in that order."""
        return tuple(self._generations)

    def refresh(self) -> None:
        """Look again at which adapters the model carries: a run may have attached one. While adapters are merged, none can be named."""
        self.names = () if is_merged(self._model) else tuple(adapter_names(self._model))

    def index(self, name: str) -> int:
        """The place of a name among ``names``.

        Raises:
            AdapterError: there is none of this name.
        """
        if name not in self.names:
            raise unknown_adapter(name, self.names)
        return self.names.index(name)

    def generation(self, name: str) -> int:
        """A number that no other adapter loaded under this name has had; 0 for one that was not loaded here."""
        return self._generations.get(name, 0)

    def load(self, name: str, folder: str | Path, *, base_fingerprint: str | None = None) -> None:
        """Put the adapter of a folder, ours or PEFT's, on the model. What acts, what is trained and torch's random numbers do not change.

        Args:
            name: for requests to name it by.
            folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``.
            base_fingerprint: of the model, in place of the registry's.

        Raises:
            AdapterError: the name is taken or no name, the adapter is of another base or cannot be used on this model. The model is then
                unchanged.
            UntrustedInputError: a file is missing or damaged.
        """
        check_adapter_name(name)
        if name in adapter_names(self._model):
            raise AdapterError(f"there is an adapter {name!r} already.", key="name", fix="drop it first, or choose another name.")
        with _unchanged(self._model), torch.random.fork_rng(devices=[]):
            load_adapter(self._model, folder, base_fingerprint=base_fingerprint or self.base_fingerprint, name=name)
        whole = self._not_by_row(name)
        reason = self.refuses() if whole is None else ""
        if whole is not None or reason:
            drop_adapter(self._model, name)
        if whole is not None:
            raise AdapterError(f"saves {whole} whole, which cannot be computed row by row.", file=folder, fix=_MERGE)
        if reason:
            raise AdapterError(
                f"the engine that is open cannot serve it: {reason}.", file=folder, fix="open the engine with runner: modules."
            )
        self.version += 1
        self._generations[name] = self.version
        self.refresh()

    def drop(self, name: str) -> None:
        """Take an adapter off the model; where none is left, its modules are what they were. No unfinished request may name it.

        Raises:
            AdapterError: none of this name was loaded here, or adapters are merged.
        """
        if name not in self._generations:
            raise unknown_adapter(name, self.loaded)
        drop_adapter(self._model, name)
        self.version += 1
        del self._generations[name]
        self.refresh()

    def _not_by_row(self, name: str) -> str | None:
        """The first module that the adapter saves whole and that rows of several adapters cannot pass through together."""
        for module_name, module in adapted_modules(self._model):
            is_saved = isinstance(module, TrainedCopy) and name in module.adapters
            if is_saved and not isinstance(module.original_module, _BY_ROW) and not f"{module_name}.".startswith(VISION_PREFIXES):
                return module_name
        return None


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Keep which adapters act and which parameters are trained; what is new neither acts nor is trained."""
    active = {id(module): module.active for _, module in adapted_modules(model)}
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    try:
        yield
    finally:
        for _, module in adapted_modules(model):
            module.active = active.get(id(module), ())
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in trained)
