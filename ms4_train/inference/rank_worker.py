"""What a rank does for a generation of several ranks: obeys one order at a time with an engine of its own.

Rank 0 obeys its own orders too, so what is done is the same everywhere. What goes wrong is told as a reply, so that all ranks stay in step;
only a pass that failed, in which other ranks may still wait, is raised.
Exercise it: ``pytest tests/ms4_train/inference/test_rank_worker.py``.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from ms4_train.errors import EngineError, MS4Error, ParallelError
from ms4_train.inference.detokenize import EngineTokenizer
from ms4_train.inference.engine import Engine
from ms4_train.inference.messages import error_value, events_value, pack, pack_requests, unpack, unpack_requests
from ms4_train.inference.request import Completion, Event, FinishEvent, GenerationRequest
from ms4_train.model.moe import Mistral4Experts
from ms4_train.model.network import Mistral4ForCausalLM


class RankWorker:
    """Obeys orders.

    Args:
        model: of this rank.
        tokenizer: of the model.
        leads: on rank 0, which makes its engine itself before it orders the others to.

    Attributes:
        failure: what went wrong with the last order, where something did.
    """

    def __init__(self, model: Mistral4ForCausalLM, tokenizer: EngineTokenizer, *, leads: bool = False) -> None:
        self.failure: Exception | None = None
        self._leads = leads
        self._loaded: str | None = None
        self._model = model
        self._tokenizer = tokenizer
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """This rank's engine, once it is made."""
        assert self._engine is not None, "no engine was ordered"
        return self._engine

    @property
    def _is_spread(self) -> bool:
        """Whether passes need all ranks. Where each has all experts, ranks only share out the requests."""
        return any(isinstance(module, Mistral4Experts) and module.exchange is not None for module in self._model.modules())

    def make(self, settings: dict[str, Any]) -> None:
        """Make the engine anew.

        Raises:
            EngineError: as ``Engine``.
        """
        self.close()
        self._engine = Engine(self._model, self._tokenizer, **settings)

    def close(self) -> None:
        """Give the model back."""
        if self._engine is not None:
            self._engine.close()

    def obey(self, order: dict[str, Any], part: bytes) -> dict[str, Any] | None:
        """Do what an order says; the reply as JSON values, None where none is wanted.

        Raises:
            ParallelError: a pass failed.
        """
        self.failure = None
        if order["do"] == "close":
            self.close()
            return None
        try:
            return self._do(order, part)
        except ParallelError:
            raise
        except Exception as error:
            self.failure = error
            return {"error": error_value(error)}

    def _do(self, order: dict[str, Any], part: bytes) -> dict[str, Any]:
        match order["do"]:
            case "make":
                if not self._leads:
                    self.make(_understood(order["settings"]))
            case "open":
                self.engine._open(order["needed"], order["longest"])
            case "step":
                return self._step(part)
            case "forget":
                self.engine._drop_all()
            case "load":
                self._loaded = None
                self.engine.load_adapter(order["name"], order["folder"])
                self._loaded = order["name"]
            case "undo load":  # where it did not fail
                if self._loaded is not None:
                    self.engine.drop_adapter(self._loaded)
                self._loaded = None
            case "drop":
                self.engine.drop_adapter(order["name"])
            case unknown:
                raise AssertionError(f"no order {unknown!r}")
        return {}

    def _step(self, part: bytes) -> dict[str, Any]:
        engine = self.engine
        events: list[Event] = []
        problem: Exception | None = None
        try:
            requests, more = unpack_requests(part) if part else ([], {})
            for request in requests:
                events += self._submit(request)
            for request_id in more.get("cancel", ()):
                engine.cancel(request_id)
        except Exception as error:  # the pass of this step comes all the same: the others are in it
            problem = error
        events += engine.step_together() if self._is_spread else engine.step()
        if problem is not None:
            raise problem
        return {"events": events_value(events), "stats": asdict(engine.stats)}

    def _submit(self, request: GenerationRequest) -> list[Event]:
        """Queue a request; the events of its end where this rank cannot serve it."""
        try:
            self.engine.submit(request)
        except MS4Error as error:
            own = EngineError(error.message, key=error.key or request.request_id, fix=error.fix)
            return [
                FinishEvent(Completion(request.request_id, [], "error", None, len(request.prompt_ids), 0, 0.0, index, error=own))
                for index in range(request.n)
            ]
        return []

    @staticmethod
    def packed(reply: dict[str, Any]) -> bytes:
        """A reply as bytes."""
        return pack(reply)

    @staticmethod
    def unpacked(data: bytes) -> dict[str, Any]:
        """A reply from its bytes."""
        return unpack(data)[0]

    @staticmethod
    def packed_part(requests: list[GenerationRequest], cancelled: list[str]) -> bytes:
        """A rank's part of a step as bytes: requests to begin, and ids of those to end."""
        return pack_requests(requests, cancel=cancelled)

    @staticmethod
    def told(settings: dict[str, Any]) -> dict[str, Any]:
        """An engine's settings as JSON values."""
        return {key: str(value).removeprefix("torch.") if key == "cache_dtype" and value else value for key, value in settings.items()}


def _understood(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings from their JSON values."""
    dtype = settings.get("cache_dtype")
    return settings if dtype is None else {**settings, "cache_dtype": getattr(torch, dtype)}
