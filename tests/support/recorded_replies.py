"""Replies of real servers, recorded by ``tests/peers/test_eval_servers.py`` and replayed by quick tests.

Made anew with ``MS4_RECORD_REPLIES=1 pytest tests/peers/test_eval_servers.py -k recording``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from ms4_evals.clients.base import SampleRequest
from ms4_evals.clients.servers.kinds import KINDS
from ms4_evals.tasks.base import Mode

FOLDER = Path(__file__).parents[1] / "evals" / "ms4_evals" / "clients" / "servers" / "recorded"
ROUTES = ("/v1/models", "/props", "/model_info", "/get_model_info", "/api/v0/models", "/openapi.json")


@dataclass(frozen=True)
class Case:
    """One question and the reply to it, byte for byte; ``thinking`` and ``answer`` are what the reply says, known from elsewhere."""

    mode: Mode
    stream: bool
    max_tokens: int
    question: str
    body: dict[str, Any]
    reply: str
    thinking: str
    answer: str
    finish_reason: str


@dataclass(frozen=True)
class Recording:
    """``routes``: status, ``server`` header and body of what a server says about itself."""

    server: str
    kind: str
    routes: dict[str, tuple[int, str, str]]
    cases: list[Case]


def sample_request(
    question: str, mode: Mode, *, max_tokens: int, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0
) -> SampleRequest:
    """A request of one user message."""
    return SampleRequest(
        problem_id=question,
        mode=mode,
        sample_index=0,
        prompt=lambda: [{"role": "user", "content": question}],
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        seed=seed,
    )


def deltas(reply: str) -> list[dict[str, Any]]:
    """What a stream holds, chunk by chunk; the quick tests' own reading of server-sent events."""
    lines = [line.removeprefix("data: ") for line in reply.split("\n") if line.startswith("data: ") and line != "data: [DONE]"]
    return [choice["delta"] for line in lines for choice in json.loads(line)["choices"]]


def message(reply: str) -> dict[str, Any]:
    """The message of a whole reply."""
    return json.loads(reply)["choices"][0]["message"]


def shape(case: Case) -> set[str]:
    """Which fields come in which types, without their values."""
    if not case.stream:
        return {f"{name}: {type(value).__name__}" for name, value in message(case.reply).items()}
    return {f"{name}: {type(value).__name__}" for delta in deltas(case.reply) for name, value in delta.items()}


def ask(url: str, kind: str, model: str, case: Mapping[str, Any]) -> Case:
    """Ask a server one thing, as the table of kinds has it."""
    request = sample_request(case["question"], case["mode"], max_tokens=case["max_tokens"])
    body = KINDS[kind].body(request, model, stream=case["stream"], extra_body={})
    response = httpx.post(f"{url}/chat/completions", json=body, timeout=120)
    assert response.status_code == 200, response.text
    return Case(**case, body=body, reply=response.text)


def ask_about_itself(url: str) -> dict[str, tuple[int, str, str]]:
    """The routes that detection looks at; of the long list of routes, their names alone."""
    found = {}
    for route in ROUTES:
        response = httpx.get(url.removesuffix("/v1") + route, timeout=30)
        body = response.text
        if route == "/openapi.json" and response.status_code == 200:
            body = json.dumps({"paths": {key: {} for key in response.json()["paths"]}})
        found[route] = (response.status_code, response.headers.get("server", ""), body)
    return found


def check_or_record(name: str, recording: Recording) -> None:
    """Compare the shapes of replies with those on disk, or write them there when ``MS4_RECORD_REPLIES=1``."""
    if os.environ.get("MS4_RECORD_REPLIES") == "1":
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{name}.json").write_text(json.dumps(asdict(recording), indent=1, ensure_ascii=False) + "\n")
    kept = load(name)
    assert kept.server == recording.server, "the server was updated: look at what changed, and record anew"
    assert [shape(case) for case in recording.cases] == [shape(case) for case in kept.cases]
    assert [case.body for case in recording.cases] == [case.body for case in kept.cases]


def load(name: str) -> Recording:
    """One recording."""
    content = json.loads((FOLDER / f"{name}.json").read_text())
    routes = {route: (status, server, body) for route, (status, server, body) in content["routes"].items()}
    return Recording(content["server"], content["kind"], routes, [Case(**case) for case in content["cases"]])


def all_names() -> Iterable[str]:
    """Of the recordings, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))
