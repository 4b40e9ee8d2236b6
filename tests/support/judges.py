"""A judge on a free port of this machine: an OpenAI-compatible server that compares answers by a rule, and misbehaves as it is told.

It reads the prompts of both of AA-LCR's judges with patterns of its own, finds the official answer in the candidate (ignoring case and
white space), and replies as that version asks. Modes:

- ``rule``: right, in the form asked for;
- ``always-correct``: whatever it is shown, as a judge may that is shown an empty answer;
- ``lower-case``, ``full-stop`` (``INCORRECT.``), ``fenced`` (JSON in a code fence): right, in another dress;
- ``thinking``: right, after a thought in ``reasoning_content``; ``think-tags``: the thought stands between tags in the content;
- ``wordy``: the verdict inside a sentence, which is no verdict; ``garbage``: none at all;
- ``garbage-once``: no verdict for the first request of every prompt, then right;
- ``cut``: stopped by its token limit; ``slow``: right, after ``seconds``; ``error``: status 500; ``refuse``: status 400.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "rule-judge"
MODES = (
    "rule", "always-correct", "lower-case", "full-stop", "fenced", "thinking", "think-tags", "wordy", "garbage", "garbage-once", "cut",
    "slow", "error", "refuse",
)  # fmt: skip

_V1_0 = re.compile(
    r"The question, for reference only: (?P<question>.*)\nThe OFFICIAL ANSWER: (?P<official>.*?)\n"
    r"CANDIDATE ANSWER TO ASSESS: (?P<candidate>.*)\n\nReply only with CORRECT or INCORRECT\.$",
    re.DOTALL,
)
_V1_1 = re.compile(
    r"START QUESTION (?P<question>.*?)\n\nEND QUESTION\n\nThe OFFICIAL ANSWER: (?P<official>.*?)\n\nEND OFFICIAL ANSWER\n\n"
    r"BEGIN CANDIDATE ANSWER TO ASSESS\n\n(?P<candidate>.*?)\n\nEND CANDIDATE ANSWER TO ASSESS\n\n",
    re.DOTALL,
)


@dataclass
class JudgeServer:
    """A running judge. ``mode`` and ``seconds`` may be changed while it runs."""

    port: int
    mode: str
    seconds: float = 0.2
    requests: list[dict[str, Any]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def reply(self, body: dict[str, Any]) -> tuple[str, str, str]:
        """(thinking, content, finish_reason) for the body of a request."""
        prompt = body["messages"][-1]["content"]
        is_again = any(earlier["messages"] == body["messages"] for earlier in self.requests)
        self.requests.append(body)
        verdict = "CORRECT" if self.mode == "always-correct" or agrees(prompt) else "INCORRECT"
        wants_json = "Reply as JSON" in prompt
        if self.mode == "lower-case":
            verdict = verdict.lower()
        elif self.mode == "full-stop":
            verdict += "."
        content = json.dumps({"verdict": verdict}) if wants_json else verdict
        if self.mode == "fenced":
            content = f"```json\n{content}\n```"
        elif self.mode == "think-tags":
            content = f"<think>Is it CORRECT? I compare.</think>\n\n{content}"
        elif self.mode == "wordy":
            content = f"The candidate answer is {verdict} because of the official answer."
        elif self.mode in {"garbage", "garbage-once"} and not (self.mode == "garbage-once" and is_again):
            content = "I cannot tell. CORRECT or INCORRECT?"
        thinking = "The official answer stands there, or not." if self.mode == "thinking" else ""
        return thinking, content, "length" if self.mode == "cut" else "stop"


def agrees(prompt: str) -> bool:
    """Whether the candidate of a judge's prompt holds the official answer."""
    found = _V1_1.search(prompt) or _V1_0.search(prompt)
    assert found is not None, f"this is no prompt of AA-LCR's judges: {prompt[:200]!r}"
    official, candidate = (" ".join(found[name].split()).casefold() for name in ("official", "candidate"))
    return official in candidate


@contextlib.contextmanager
def judging(mode: str = "rule", **settings: Any) -> Iterator[JudgeServer]:
    """A judge for the length of the block."""
    assert mode in MODES
    judge = JudgeServer(0, mode, **settings)
    server = _QuietServer(("127.0.0.1", 0), _handler(judge))
    judge.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _QuietServer(ThreadingHTTPServer):
    """Says nothing of clients that go away in the middle."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _handler(judge: JudgeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Nothing is printed."""

        def do_GET(self) -> None:
            if self.path == "/v1/models":
                self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "tests"}]})
            else:
                self._send(404, {"error": {"message": "no such route"}})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if judge.mode in {"error", "refuse"}:
                judge.requests.append(body)
                self._send(500 if judge.mode == "error" else 400, {"error": {"message": "the judge is not in"}})
                return
            if judge.mode == "slow":
                time.sleep(judge.seconds)
            thinking, content, reason = judge.reply(body)
            usage = {"prompt_tokens": 50, "completion_tokens": 5 + len(thinking), "total_tokens": 55 + len(thinking)}
            head = {"id": "judge", "created": 0, "model": body["model"]}
            message: dict[str, Any] = {"role": "assistant", "content": content}
            if thinking:
                message["reasoning_content"] = thinking
            if not body.get("stream"):
                choice = {"index": 0, "message": message, "finish_reason": reason}
                self._send(200, {**head, "object": "chat.completion", "choices": [choice], "usage": usage})
                return
            choices = [[{"index": 0, "delta": message, "finish_reason": None}], [{"index": 0, "delta": {}, "finish_reason": reason}], []]
            chunks = [{**head, "object": "chat.completion.chunk", "choices": choice} for choice in choices]
            chunks[-1]["usage"] = usage
            text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
            self._send_bytes(200, text.encode(), "text/event-stream")

        def _send(self, status: int, value: dict[str, Any]) -> None:
            self._send_bytes(status, json.dumps(value).encode(), "application/json")

        def _send_bytes(self, status: int, data: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler
