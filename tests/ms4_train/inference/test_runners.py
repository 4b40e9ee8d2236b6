"""The compiled runner where it serves, torch modules elsewhere; a name that does not serve is refused with the reason."""

from __future__ import annotations

import logging

import pytest
import torch
from support.models import tiny_model

from ms4_train.errors import EngineError
from ms4_train.inference.adapters import AdapterRegistry
from ms4_train.inference.module_runner import ModuleRunner
from ms4_train.inference.native_runner import NativeRunner
from ms4_train.inference.paged_cache import PagedLatentCache
from ms4_train.inference.runners import make_runner


def make(choice, dtype=torch.float32):
    model = tiny_model(dtype=dtype)
    config = model.config
    cache = PagedLatentCache(num_layers=config.num_hidden_layers, width=config.latent_dim, num_blocks=4, block_size=8, dtype=dtype)
    return make_runner(choice, model, cache, AdapterRegistry(model), deterministic=False)


def test_the_compiled_runner_is_taken_where_it_serves() -> None:
    assert isinstance(make("auto"), NativeRunner)
    assert isinstance(make("modules"), ModuleRunner)


def test_modules_serve_what_it_does_not_and_the_log_says_why(caplog) -> None:
    with caplog.at_level(logging.INFO, logger="ms4_train"):
        assert isinstance(make("auto", torch.float64), ModuleRunner)
    assert "torch modules" in caplog.text
    assert "64" in caplog.text


@pytest.mark.parametrize(("choice", "dtype", "words"), [("native", torch.float64, "does not serve"), ("fast", torch.float32, "no runner")])
def test_refusals(choice, dtype, words) -> None:
    with pytest.raises(EngineError, match=words) as raised:
        make(choice, dtype)
    assert raised.value.key == "runner"
