"""Which runner computes an engine's steps. Exercise it: ``pytest tests/ms4_train/inference/test_runners.py``."""

from __future__ import annotations

import logging
from typing import Literal

from ms4_train.errors import EngineError
from ms4_train.inference.adapters import AdapterRegistry
from ms4_train.inference.module_runner import ModuleRunner
from ms4_train.inference.native_runner import NativeRunner, against
from ms4_train.inference.paged_cache import PagedLatentCache
from ms4_train.inference.step import Runner
from ms4_train.model.network import Mistral4ForCausalLM

RunnerChoice = Literal["auto", "native", "modules"]

_LOG = logging.getLogger("ms4_train")


def make_runner(
    choice: RunnerChoice, model: Mistral4ForCausalLM, cache: PagedLatentCache, adapters: AdapterRegistry, *, deterministic: bool
) -> Runner:
    """The runner for a model.

    Args:
        choice: "auto" takes the compiled one where it serves.
        model: to run.
        cache: of its latents.
        adapters: loaded ones.
        deterministic: the compiled runner always is; the other one is slower then.

    Raises:
        EngineError: the compiled runner was asked for by name and does not serve this model, or an unknown name.
    """
    if choice not in ("auto", "native", "modules"):
        raise EngineError(f"{choice!r} is no runner.", key="runner", fix="use auto, native or modules.")
    why = against(model, cache) if choice != "modules" else "asked for"
    if not why:
        return NativeRunner(model, cache, adapters)
    if choice == "native":
        raise EngineError(f"the compiled runner does not serve this model: {why}.", key="runner", fix="use auto or modules.")
    _LOG.info("inference runs on torch modules: %s", why)
    return ModuleRunner(model, cache, deterministic=deterministic)
