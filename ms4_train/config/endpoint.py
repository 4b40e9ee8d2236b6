"""Servers that speak OpenAI's protocol, as an evaluation reaches them: models under test, and judges.

Exercise it: ``pytest tests/ms4_train/config/test_endpoint.py``.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator

from ms4_train.config.section import Section

ServerKindName = Literal["auto", "vllm", "sglang", "llama.cpp", "lm-studio", "transformers", "ms4", "mistral", "openai", "compatible"]
Price = Annotated[float, Field(ge=0)]


class Server(Section):
    """One address that answers for the model."""

    base_url: str = Field(description="With its version, e.g. http://127.0.0.1:8000/v1.")
    model: str | None = Field(default=None, description="Name of the model there; default: the only one that the server lists.")
    api_key_env: str | None = Field(
        default=None,
        description="Environment variable that holds the key. Keys never stand in files.",
    )

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, text: str) -> str:
        if not re.fullmatch(r"https?://\S+", text):
            raise ValueError(f"{text[:80]!a} is no address; write it as http://127.0.0.1:8000/v1")
        return text

    @field_validator("api_key_env")
    @classmethod
    def _is_a_variable(cls, text: str | None) -> str | None:
        # The text is not repeated: it may be the key itself.
        if text is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
            raise ValueError(
                "this is not the name of an environment variable; write the variable's name, such as MISTRAL_API_KEY, not the key"
            )
        return text


class Prices(Section):
    """What a million tokens cost, in any one currency."""

    input: Price = 0.0
    output: Price = 0.0


class EndpointSection(Section):
    """One model behind one or more OpenAI-compatible servers."""

    servers: list[Server] = Field(min_length=1, description="Several share the work; one that fails is left alone for a while.")
    kind: ServerKindName = Field(
        default="auto",
        description="Which program serves: it decides how reasoning is asked for and where thinking comes back. auto asks the server.",
    )
    stream: bool = Field(default=True, description="Read answers as they are written, so that a stalled server is noticed.")
    concurrency: PositiveInt = Field(default=64, description="Most requests in flight over all servers; fewer while they push back.")
    timeout: Annotated[float, Field(gt=0)] = Field(
        default=600.0, description="Seconds without a byte (of a stream) or without the answer (else) before a request is given up."
    )
    max_attempts: PositiveInt = Field(default=8, description="Tries per answer before it counts as an error.")
    prices: Prices | None = Field(default=None, description="For the cost in reports.")
    extra_body: dict[str, Any] = Field(
        default={}, description="Further keys of each request, as the server has them; part of the model's identity."
    )


class JudgeSection(EndpointSection):
    """The model that compares long-context answers with the official ones."""

    temperature: Annotated[float, Field(ge=0, le=5)] | None = Field(default=0.0, description="null leaves it to the server.")
    max_tokens: PositiveInt = 4096
    workers: PositiveInt = Field(default=8, description="Judgements asked for at once.")
