"""Adapters over HTTP: listed, asked for by name, loaded and dropped while the server runs; the engine called directly is the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from support.adapter_rows import WIDE, make_folder
from support.models import tiny_config, tiny_model
from support.served import NAME, Served, served, tiny_engine
from support.tokenizers import tiny_tokenizer

from ms4_train.inference import GenerationRequest, SamplingParams

PROMPT = [1, 60, 70, 80, 90]


def base() -> Any:
    return tiny_model(tiny_config(vocab_size=tiny_tokenizer().vocab_size))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("red", "blue"), 1):
        make_folder(folder / name, WIDE, seed, make=base)
    return folder


def post(server: Served, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/{path}", json=body, timeout=60)


def logprobs(server: Served, model: str) -> list[float]:
    body = {"model": model, "prompt": PROMPT, "max_tokens": 6, "temperature": 0, "logprobs": 0, "ignore_eos": True}
    response = post(server, "completions", body)
    assert response.status_code == 200, response.text
    assert response.json()["model"] == model
    return response.json()["choices"][0]["logprobs"]["token_logprobs"]


def expected(root: Path, name: str | None) -> list[float]:
    engine = tiny_engine()
    if name is not None:
        engine.load_adapter(name, root / name)
    sampling = SamplingParams(max_tokens=6, logprobs=0, ignore_eos=True)
    (completion,) = engine.generate([GenerationRequest("r", tuple(PROMPT), sampling, adapter=name)])
    return [entry.logprob for entry in completion.logprobs or []]


def test_adapters_come_and_go(root: Path) -> None:
    engine = tiny_engine()
    engine.load_adapter("red", root / "red")
    with served(engine, adapters=("red",), adapter_folder=root) as server:
        listed = server.client().models.list().data
        assert [(card.id, (card.model_extra or {})["parent"]) for card in listed] == [(NAME, None), ("red", NAME)]
        # fp32, sums in another order where rows of several adapters share a product.
        close = {"rel": 1e-4, "abs": 1e-4}
        assert logprobs(server, NAME) == pytest.approx(expected(root, None), **close)
        assert logprobs(server, "red") == pytest.approx(expected(root, "red"), **close)
        assert post(server, "completions", {"model": "blue", "prompt": "x"}).status_code == 404
        loaded = post(server, "load_lora_adapter", {"lora_name": "blue", "lora_path": "blue"})
        assert (loaded.status_code, loaded.json()["id"]) == (200, "blue")
        blue = logprobs(server, "blue")
        assert blue == pytest.approx(expected(root, "blue"), **close)
        assert blue != pytest.approx(expected(root, "red"), **close)
        assert post(server, "load_lora_adapter", {"lora_name": "blue", "lora_path": "red"}).status_code == 400
        assert post(server, "load_lora_adapter", {"lora_name": "x", "lora_path": "../x"}).json()["error"]["param"] == "lora_path"
        assert post(server, "unload_lora_adapter", {"lora_name": "red"}).json()["deleted"] is True
        assert post(server, "unload_lora_adapter", {"lora_name": "red"}).status_code == 404
        assert post(server, "completions", {"model": "red", "prompt": "x"}).status_code == 404
        assert [card.id for card in server.client().models.list().data] == [NAME, "blue"]
        server.wait_idle()


def test_a_folder_without_an_adapter_is_named_without_its_path(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with served(adapter_folder=tmp_path) as server:
        response = post(server, "load_lora_adapter", {"lora_name": "x", "lora_path": "empty"})
        assert response.status_code == 400
        assert str(tmp_path) not in response.text
        assert [card.id for card in server.client().models.list().data] == [NAME]
        server.wait_idle()
