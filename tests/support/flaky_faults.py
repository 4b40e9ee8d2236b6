"""What the scripted server does wrong: a status, a silence, or bytes that are not the answer.

``FAULTS`` maps a name to what it is. Those of ``STATUS_FAULTS`` and ``SILENT_FAULTS`` replace the reply; the others spoil its bytes here.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from email.utils import format_datetime
from typing import Any

from support.flaky_answers import Answer, chunks, share, whole

STATUS_FAULTS = {
    "429-seconds": "too many requests, Retry-After: 1",
    "429-date": "too many requests, Retry-After: a date one second ahead",
    "429-garbage": "too many requests, Retry-After: soon",
    "500": "internal error",
    "503": "unavailable, Retry-After: 0",
}
SILENT_FAULTS = {
    "reset": "the connection is reset before a byte comes",
    "close": "the connection is closed before a byte comes",
    "hang": "nothing comes",
    "hang-within": "half of the stream comes, then nothing",
}
BYTE_FAULTS = {
    "drip": "a few bytes at a time, to the right end",
    "cut": "the connection ends within a token",
    "cut-clean": "the body ends as HTTP has it, within the answer",
    "cut-before-end": "the body ends as HTTP has it, after the last token and before the reason",
    "invalid-utf8": "a byte that UTF-8 has not, within the text",
    "invalid-json": "a chunk without its last brace",
    "null-content": "content: null, thinking alone, and no reason",
    "wrong-model": "another model answers",
    "duplicate": "a chunk comes twice",
    "error-object": "an error within the stream",
    "empty-choices": "chunks without choices",
    "html": "status 200 and a page for people",
}
FAULTS = STATUS_FAULTS | SILENT_FAULTS | BYTE_FAULTS
OTHER_MODEL = "some-other-model"
PAGE = b"<!doctype html><title>Welcome</title><p>\\boxed{0}</p>"


def choose_fault(seed: int, key: str, attempt: int, rate: float, kinds: Sequence[str]) -> str | None:
    """The fault of one attempt of one request, or none; decided by the arguments, not by when the attempt is made."""
    if share(seed, "fault", key, attempt) >= rate:
        return None
    return kinds[int(share(seed, "kind", key, attempt) * len(kinds))]


def status_reply(fault: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a fault of ``STATUS_FAULTS``."""
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=1)
    waits = {"429-seconds": "1", "429-date": format_datetime(soon, usegmt=True), "429-garbage": "soon", "503": "0"}
    headers = {"Retry-After": waits[fault]} if fault in waits else {}
    body = json.dumps({"error": {"message": f"scripted {fault}", "type": "scripted", "code": None}})
    return int(fault[:3]), headers, body.encode()


def _event(chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


def stream_events(answer: Answer, body: dict[str, Any], style: str, fault: str | None) -> list[bytes]:
    """The events of a stream; ``cut`` leaves the last one incomplete."""
    if fault == "wrong-model":
        body = {**body, "model": OTHER_MODEL}
    made = chunks(answer, body, style)
    # The role comes first, then one chunk per token, then the reason.
    tokens = len(answer.thinking) + len(answer.content) + 2 * (style == "tags" and bool(answer.thinking))
    middle = 1 + tokens // 2
    if fault == "null-content":
        head = {name: made[0][name] for name in ("id", "object", "created", "model")}
        made = [{**head, "choices": [{"index": 0, "delta": {"content": None, "reasoning": "Let me"}, "finish_reason": None}]}]
    if fault == "empty-choices":
        made = [{**chunk, "choices": []} for chunk in made]
    events = [_event(chunk) for chunk in made] + [b"data: [DONE]\n\n"]
    if fault == "duplicate":
        events.insert(middle, events[middle])
    elif fault == "invalid-utf8":
        events[middle] = _spoil_text(events[middle])
    elif fault == "invalid-json":
        events[middle] = events[middle].replace(b"}\n\n", b"\n\n")
    elif fault == "error-object":
        events[middle:] = [_event({"error": {"message": "scripted: the engine died", "code": 500}}), b"data: [DONE]\n\n"]
    elif fault == "cut":
        events[middle:] = [events[middle][: len(events[middle]) * 2 // 3]]
    elif fault == "cut-clean":
        events[middle:] = []
    elif fault == "cut-before-end":
        events[1 + tokens :] = []
    return events


def _spoil_text(event: bytes) -> bytes:
    """A stray byte at the start of the text of a chunk: after the last string that opens before the delta ends."""
    place = event.index(b'"delta":')
    start = event.index(b":", place + 8) + 1
    quote = event.index(b'"', start)
    return event[: quote + 1] + b"\xff" + event[quote + 1 :]


def whole_body(answer: Answer, body: dict[str, Any], style: str, fault: str | None) -> bytes:
    """The body of a reply that is not streamed."""
    reply = whole(answer, body, style)
    choice = reply["choices"][0]
    if fault == "wrong-model":
        reply["model"] = OTHER_MODEL
    elif fault == "null-content":
        choice["message"], choice["finish_reason"] = {"role": "assistant", "content": None, "reasoning": "Let me"}, None
    elif fault == "empty-choices":
        reply["choices"] = []
    elif fault == "error-object":
        reply = {"error": {"message": "scripted: the engine died", "code": 500}}
    elif fault == "cut-before-end":
        choice["finish_reason"] = None
    data = json.dumps(reply, ensure_ascii=False).encode()
    if fault == "invalid-utf8":
        return data.replace(b'"assistant"', b'"assist\xff"')
    if fault in {"invalid-json", "duplicate"}:
        return data[:-1]
    if fault in {"cut", "cut-clean"}:
        return data[: len(data) // 2]
    return data
