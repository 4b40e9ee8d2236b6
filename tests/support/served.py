"""A server on a free port of this machine, over a tiny model, with uvicorn in a thread as ``ms4 serve`` runs it in a process."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI
from openai import OpenAI
from support.models import tiny_config, tiny_model
from support.tokenizers import tiny_tokenizer

from ms4_train.inference import Engine
from ms4_train.inference.background import EngineThread
from ms4_train.serving import ServerSettings, create_app
from ms4_train.serving.http_server import bind, make_server
from ms4_train.serving.service import Service

NAME = "tiny"


@dataclass
class Served:
    """A running server.

    Attributes:
        port: on 127.0.0.1.
        app: behind it.
        thread: of its engine.
        server: uvicorn's.
    """

    port: int
    app: FastAPI
    thread: EngineThread
    server: uvicorn.Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def service(self) -> Service:
        return self.app.state.service

    def client(self, key: str = "EMPTY", **options: Any) -> OpenAI:
        """OpenAI's own client; it retries nothing, so that tests see what the server said."""
        return OpenAI(api_key=key, base_url=f"{self.url}/v1", **{"max_retries": 0, "timeout": 60.0, **options})

    def wait_idle(self, seconds: float = 20.0) -> None:
        """Wait until no answer is at work; fails after ``seconds``."""
        end = time.monotonic() + seconds
        while self.service.admission.answers or self.thread.stats.running or self.thread.stats.waiting or self.thread.num_unfinished:
            assert time.monotonic() < end, f"{self.service.admission.answers} answers are still at work"
            time.sleep(0.01)


def tiny_engine(**options: Any) -> Engine:
    """An engine over a small random model with the tiny tokenizer."""
    tokenizer = tiny_tokenizer()
    return Engine(
        tiny_model(tiny_config(vocab_size=tokenizer.vocab_size)), tokenizer, **{"max_batch_size": 8, "max_context": 1024, **options}
    )


@contextlib.contextmanager
def served(engine: Engine | None = None, *, send_buffer: int | None = None, **settings: Any) -> Iterator[Served]:
    """A server for the length of the block.

    Args:
        engine: closed; default: ``tiny_engine()``.
        send_buffer: bytes that the system keeps of what a client has not read; default: the system's choice, some megabytes.
        settings: of ``ServerSettings``.
    """
    engine = engine or tiny_engine()
    with EngineThread(engine) as thread:
        app = create_app(thread, engine.tokenizer, ServerSettings(**{"model_name": NAME, **settings}))  # pyright: ignore[reportArgumentType]
        listener = bind("127.0.0.1", 0)
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        server = make_server(app)
        runner = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        port = listener.getsockname()[1]
        runner.start()
        try:
            while not server.started:
                assert runner.is_alive(), "the server did not start"
                time.sleep(0.005)
            yield Served(port, app, thread, server)
        finally:
            server.should_exit = True
            runner.join(timeout=20)
            assert not runner.is_alive(), "the server did not end"
