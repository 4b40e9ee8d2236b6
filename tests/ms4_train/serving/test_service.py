"""Names and the folder of adapters: what clients may name, and where they may load from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.served import tiny_engine

from ms4_train.inference import EngineThread
from ms4_train.serving.failures import ApiError
from ms4_train.serving.service import Service
from ms4_train.serving.settings import ServerSettings


def service(**settings: Any) -> Service:
    engine = tiny_engine()
    return Service(EngineThread(engine), engine.tokenizer, ServerSettings(**{"model_name": "m", **settings}))  # pyright: ignore[reportArgumentType]


def refused(function, *arguments) -> ApiError:
    with pytest.raises(ApiError) as caught:
        function(*arguments)
    return caught.value


def test_names() -> None:
    found = service(adapters=("a", "b"))
    assert found.names == ["m", "a", "b"]
    assert (found.adapter_of("m"), found.adapter_of("b")) == (None, "b")
    error = refused(found.adapter_of, "x")
    assert (error.status, error.param) == (404, "model")


@pytest.mark.parametrize("path", ["..", ".", "/etc", "../outside", "link", "file", "nothing", "\0", "a/../..", "x" * 4000])
def test_adapters_come_from_below_the_folder(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside").mkdir()
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "file").write_text("x")
    error = refused(service(adapter_folder=root).load_adapter, "new", path)
    assert (error.status, error.param) == (400, "lora_path")


def test_taken_and_unknown_names(tmp_path: Path) -> None:
    found = service(adapter_folder=tmp_path, adapters=("a",))
    assert refused(found.load_adapter, "a", "x").param == "lora_name"
    assert refused(found.load_adapter, "m", "x").param == "lora_name"
    assert refused(found.drop_adapter, "b").status == 404


def test_stopping_and_dead_servers_are_not_well() -> None:
    found = service()
    found.check_alive()
    found.thread.error = RuntimeError("x")
    assert refused(found.check_alive).status == 503
    found.thread.error = None
    found.begin_stop()
    assert refused(found.check_alive).status == 503
    assert refused(found.admission.enter).status == 503
