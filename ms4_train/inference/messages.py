"""What ranks that generate together tell each other, as bytes: requests with their images one way, events and counters the other.

Everything is JSON but the images' values, which follow it as they lie in memory; no pickle. Both ends are the same program of one run.
Exercise it: ``pytest tests/ms4_train/inference/test_messages.py``.

Shape suffixes: p patches of all images, i values of a patch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor

from ms4_train.errors import AdapterError, EngineError, MS4Error, UntrustedInputError, WeightsError
from ms4_train.inference.request import Completion, EngineStats, Event, FinishEvent, GenerationRequest, TokenEvent, TokenLogprobs
from ms4_train.inference.sampling_params import ConstraintSpec, SamplingParams
from ms4_train.model.images import ImageBatch

_LENGTH_BYTES = 8
_ERRORS: dict[str, type[MS4Error]] = {kind.__name__: kind for kind in (EngineError, AdapterError, UntrustedInputError, WeightsError)}
"""Errors that keep their type on the way; others become an EngineError."""


def pack(value: Any, tensors: Sequence[Tensor] = ()) -> bytes:
    """A JSON value and tensors, in one piece."""
    header = json.dumps({"value": value, "tensors": [[str(t.dtype).removeprefix("torch."), list(t.shape)] for t in tensors]}).encode()
    parts = [len(header).to_bytes(_LENGTH_BYTES, "little"), header]
    return b"".join(parts + [tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() for tensor in tensors])


def unpack(data: bytes) -> tuple[Any, list[Tensor]]:
    """What was packed."""
    start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    header = json.loads(data[_LENGTH_BYTES:start])
    tensors: list[Tensor] = []
    for name, shape in header["tensors"]:
        dtype: torch.dtype = getattr(torch, name)
        stop = start + dtype.itemsize * torch.Size(shape).numel()
        tensors.append(torch.frombuffer(bytearray(data[start:stop]), dtype=dtype).view(shape))
        start = stop
    return header["value"], tensors


def pack_requests(requests: Sequence[GenerationRequest], **more: Any) -> bytes:
    """Requests, and more JSON values by name."""
    plain, pixels = [], []
    for request in requests:
        values = {field.name: getattr(request, field.name) for field in fields(request)}
        if request.images is not None:
            values["images"] = request.images.grids
            pixels.append(request.images.patches_pi)
        plain.append({**values, "sampling": asdict(request.sampling)})
    return pack({**more, "requests": plain}, pixels)


def unpack_requests(data: bytes) -> tuple[list[GenerationRequest], dict[str, Any]]:
    """Requests, and the other values."""
    more, tensors = unpack(data)
    pixels = iter(tensors)
    return [_request(values, next(pixels) if values["images"] is not None else None) for values in more.pop("requests")], more


def events_value(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Events as JSON values."""
    values = []
    for event in events:
        if isinstance(event, TokenEvent):
            values.append(asdict(event))
            continue
        # Not ``asdict`` of the whole, which would copy the error too.
        completion = {field.name: getattr(event.completion, field.name) for field in fields(Completion)}
        values.append({**completion, "error": None if event.completion.error is None else error_value(event.completion.error)})
    return values


def events_of(values: Sequence[Mapping[str, Any]]) -> list[Event]:
    """Events from their JSON values."""
    events: list[Event] = []
    for value in values:
        if "finish_reason" not in value:
            logprobs = tuple(_logprobs(item) for item in value["logprobs"])
            events.append(TokenEvent(value["request_id"], value["index"], tuple(value["token_ids"]), logprobs))
            continue
        error = None if value["error"] is None else error_of(value["error"])
        assert error is None or isinstance(error, EngineError)
        chosen, prompt = value["logprobs"], value["prompt_logprobs"]
        lists = {
            "logprobs": None if chosen is None else [_logprobs(item) for item in chosen],
            "prompt_logprobs": None if prompt is None else [None if item is None else _logprobs(item) for item in prompt],
        }
        events.append(FinishEvent(Completion(**{**value, **lists, "error": error})))
    return events


def error_value(error: Exception) -> dict[str, Any]:
    """An error as a JSON value."""
    if not isinstance(error, MS4Error):
        return {"type": "", "message": f"{type(error).__name__}: {error}", "file": None, "key": None, "fix": None}
    return {"type": type(error).__name__, "message": error.message, "file": error.file, "key": error.key, "fix": error.fix}


def error_of(value: Mapping[str, Any], *, rank: int | None = None) -> MS4Error:
    """An error from its JSON value; says on which rank it happened, where one is given."""
    where = "" if rank is None else f"on rank {rank}: "
    kind = _ERRORS.get(value["type"], EngineError)
    return kind(f"{where}{value['message']}", file=value["file"], key=value["key"], fix=value["fix"])


def stats_of(values: Sequence[Mapping[str, Any]]) -> EngineStats:
    """Counters of several engines as those of one: sums, but for steps, which all take together, and bytes of a block."""
    total = EngineStats()
    for value in values:
        for name, count in value.items():
            if name == "finished":
                for reason, answers in count.items():
                    total.finished[reason] = total.finished.get(reason, 0) + answers
            elif name in ("steps", "bytes_per_block"):
                setattr(total, name, max(getattr(total, name), count))
            else:
                setattr(total, name, getattr(total, name) + count)
    return total


def _request(values: dict[str, Any], patches_pi: Tensor | None) -> GenerationRequest:
    sampling = dict(values["sampling"])
    for key in ("stop", "stop_token_ids"):
        sampling[key] = tuple(sampling[key])
    sampling["logit_bias"] = tuple((token_id, bias) for token_id, bias in sampling["logit_bias"])
    if sampling["constraint"] is not None:
        sampling["constraint"] = ConstraintSpec(**sampling["constraint"])
    images = None
    if patches_pi is not None:
        images = ImageBatch(patches_pi, tuple((rows, columns) for rows, columns in values["images"]))
    changed = {"prompt_ids": tuple(values["prompt_ids"]), "sampling": SamplingParams(**sampling), "images": images}
    return GenerationRequest(**{**values, **changed})


def _logprobs(item: Sequence[Any]) -> TokenLogprobs:
    token_id, logprob, rank, top = item
    return TokenLogprobs(token_id, logprob, rank, tuple((other, value) for other, value in top))
