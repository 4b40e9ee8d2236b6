"""One server for all tests that change nothing about it, and the same engine called directly to compare with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI
from support.served import Served, served, tiny_engine
from support.tokenizers import tiny_tokenizer

from ms4_train.chat import ChatTokenizer


@pytest.fixture(scope="session")
def tokenizer() -> ChatTokenizer:
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def server() -> Iterator[Served]:
    with served(tiny_engine(deterministic=True), max_n=4, max_answers=16, max_images=2) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Served) -> OpenAI:
    return server.client()
