"""``ms4 serve`` as a process: it says where it serves and with which limits, answers, and ends in order when it is told to."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.adapted import section
from support.adapter_rows import WIDE, make_folder, with_adapter
from support.models import tiny_config, tiny_model
from support.tokenizers import TINY_RANKS, tiny_tokenizer, tokenizer_file
from typer.testing import CliRunner

from ms4_train.adapters import adapter_tensors, save_adapter
from ms4_train.cli.main import app
from ms4_train.cli.serve import KEYS_VARIABLE
from ms4_train.errors import MS4Error
from ms4_train.weights import base_fingerprint, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serve")
    model = small_model()
    save_model(model.state_dict(), path / "model", config=model.config, tokenizer_file=tokenizer_file(TINY_RANKS))
    made = with_adapter(WIDE, 1, make=small_model)
    save_adapter(
        adapter_tensors(made),
        path / "lora",
        section=section(**WIDE),
        config=made.config,
        vision=None,
        base_path=str(path / "model"),
        base_fingerprint=base_fingerprint(path / "model"),
    )
    make_folder(path / "stranger", WIDE, 1, make=small_model)  # of another base
    return path


def small_model() -> Any:
    return tiny_model(tiny_config(vocab_size=tiny_tokenizer().vocab_size, max_position_embeddings=512))


class Process:
    """A running ``ms4 serve``; its lines are collected as they come."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        command = [sys.executable, "-m", "ms4_train.cli", "serve", *map(str, arguments), "--port", "0"]
        environment = {**os.environ, **environment, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        self.errors: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.first = self.process.stdout.readline()
        assert self.first, "".join(self.errors)
        self.limits = self.process.stdout.readline()
        self.url = self.first.split()[0]

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.errors += self.process.stderr

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Signal it; its exit code and what it said on stderr."""
        self.process.send_signal(number)
        code = self.process.wait(timeout=60)
        self.reader.join(timeout=10)
        return code, "".join(self.errors)


@pytest.fixture
def running() -> Iterator[list[Process]]:
    processes: list[Process] = []
    yield processes
    for each in processes:
        each.process.kill()
        each.process.wait()


def test_it_serves_and_ends(folder: Path, running: list[Process]) -> None:
    options = ["--adapter", f"lora={folder / 'lora'}", "--max-context", 256, "--max-answers", 8, "--deterministic"]
    server = Process(folder / "model", *options, **{KEYS_VARIABLE: "one,two"})
    running.append(server)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1 serves model, lora\n", server.first)
    assert "context 256 tokens" in server.limits
    assert "at most 8 answers" in server.limits
    assert "keys: 2" in server.limits
    key = {"authorization": "Bearer two"}
    assert httpx.get(f"{server.url}/models").status_code == 401
    assert [card["id"] for card in httpx.get(f"{server.url}/models", headers=key).json()["data"]] == ["model", "lora"]
    for name in ("model", "lora"):
        body = {"model": name, "messages": [{"role": "user", "content": "Sesame"}], "max_tokens": 5}
        assert httpx.post(f"{server.url}/chat/completions", json=body, headers=key, timeout=60).status_code == 200
    code, log = server.end()
    assert code == 0, log
    assert log.count("status=200") == 2
    for secret in ("Sesame", "two"):
        assert secret not in log
    assert "Traceback" not in log


def test_wrong_options_are_one_line(folder: Path) -> None:
    model = str(folder / "model")
    for arguments in (
        [str(folder / "nothing")],
        [model, "--adapter", "lora"],
        [model, "--adapter", f"lora={folder / 'nothing'}"],
        [model, "--adapter", f"model={folder / 'lora'}"],
        [model, "--adapter", f"lora={folder / 'stranger'}", "--max-context", "64"],
        [model, "--allow-adapter-loading", str(folder / "nothing")],
    ):
        result = CliRunner().invoke(app, ["serve", *arguments])
        assert isinstance(result.exception, MS4Error), arguments


def test_a_port_that_is_taken_is_one_line(folder: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, ["serve", str(folder / "model"), "--port", port, "--max-context", "64"])
    assert isinstance(result.exception, MS4Error)
    assert port in str(result.exception)


def test_help_has_examples() -> None:
    text = CliRunner().invoke(app, ["serve", "--help"]).output
    assert "Examples" in text
    assert "--max-answers" in text
