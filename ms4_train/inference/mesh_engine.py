"""The engine on the ranks of a mesh: rank 0 drives, the others follow, each answers a share of the requests.

A model whose experts are spread over ranks computes every pass on all of them. So every rank has an engine with a scheduler, a cache
and a sampler of its own, a request lives on one rank, and in each step all ranks compute one pass together, an empty one where a rank has
nothing to do. Rank 0 sends orders (``rank_link``), shares requests out (``sharing``), and gets the events of all ranks. Random numbers are
named by (seed, position), so answers do not depend on the number of ranks, or on where a request lives; with fp32 weights they are those
of one process, but for ties closer than rounding.

    ranks = EngineRanks(model, tokenizer, mesh)  # on every rank

    def work() -> list[str]:  # on rank 0 only
        return [completion.finish_reason for completion in ranks.engine(max_batch_size=32).generate(requests)]

    reasons = ranks.lead(work)  # on every rank, with the same result

Where it stays like one engine: ``deterministic`` holds on one number of ranks: bits do not depend on company or on the rank, but another
number of ranks adds the experts' parts of a token in another grouping.
Where it does not: a pass that fails on one rank (memory) leaves the others inside it; then the run ends, on every rank.
Exercise it: ``pytest tests/ms4_train/inference/test_mesh_engine.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ms4_train.errors import EngineError, MS4Error, RankLostError
from ms4_train.inference.calls import StepEngine, same_id
from ms4_train.inference.detokenize import EngineTokenizer
from ms4_train.inference.engine import Engine
from ms4_train.inference.messages import error_of, events_of, stats_of
from ms4_train.inference.rank_link import RankLink
from ms4_train.inference.rank_worker import RankWorker
from ms4_train.inference.request import Completion, EngineStats, Event, FinishEvent, GenerationRequest
from ms4_train.inference.sharing import Share, Sharing
from ms4_train.model.network import Mistral4ForCausalLM
from ms4_train.parallel import Mesh, progress
from ms4_train.parallel.together import error_passed_on, error_told

T = TypeVar("T")


def _never() -> bool:
    return False


class EngineRanks:
    """The ranks that generate together. Made on every rank at once; with one process everything is the plain engine.

    Args:
        model: the same on all ranks, but for experts that are spread over them (``shard_experts``); trained and used elsewhere at will
            while no engine is open.
        tokenizer: of the model.
        mesh: of the run.

    Attributes:
        should_stop: asked on every rank after each step; once it says yes anywhere, ``is_stopping`` does on rank 0.
    """

    def __init__(self, model: Mistral4ForCausalLM, tokenizer: EngineTokenizer, mesh: Mesh) -> None:
        self.mesh = mesh
        self.should_stop: Callable[[], bool] = _never
        self._model = model
        self._tokenizer = tokenizer
        self._asked_elsewhere = False
        # A rehearsal takes the place of one rank of several that are not there.
        self.link = RankLink(mesh) if mesh.expert_parallel_group is not None else None

    @property
    def is_stopping(self) -> bool:
        """Whether any rank was asked to stop, as far as rank 0 knows."""
        return self._asked_elsewhere or self.should_stop()

    def engine(self, **settings: Any) -> StepEngine:
        """An engine over all ranks. On rank 0 only, inside ``lead``, and while no earlier one is open.

        Args:
            settings: as of ``Engine``; ``max_batch_size`` and ``cache_tokens`` are those of each rank.

        Raises:
            EngineError: as ``Engine``.
        """
        worker = RankWorker(self._model, self._tokenizer, leads=True)
        worker.make(settings)
        return worker.engine if self.link is None else MeshEngine(self, worker, settings)

    def lead(self, work: Callable[[], T]) -> T:
        """Let rank 0 do work with the engine while the others follow. Collective.

        Args:
            work: done on rank 0; its result must be what JSON can hold.

        Returns:
            The result, on every rank.

        Raises:
            MS4Error: what the work raised, on rank 0; on the others an error of the same text and exit code.
            RankLostError: a rank is gone.
        """
        if self.link is None:
            return work()
        if not self.mesh.is_main:
            return self._follow(self.link)
        try:
            result = work()
            self.link.order({"do": "end", "result": result}, {})
        except BaseException as error:
            # The others leave with an error too: what they were to get will not come.
            with contextlib.suppress(RankLostError):
                self.link.order({"do": "end", "error": error_told(error)}, {})
                if isinstance(error, MS4Error):
                    error.on_all_ranks = True
            raise
        return result

    def noticed(self, replies: list[dict[str, Any]]) -> None:
        """Remember who was asked to stop."""
        self._asked_elsewhere |= any(reply.get("stop", False) for reply in replies)

    def _follow(self, link: RankLink) -> Any:
        """Do what rank 0 says until it ends; its result."""
        worker = RankWorker(self._model, self._tokenizer)
        try:
            while True:
                order, part = link.next_order()
                progress.at("generation")
                if order["do"] == "end":
                    if "error" in order:
                        raise error_passed_on(order["error"], rank=0)
                    return order["result"]
                reply = worker.obey(order, part)
                if reply is not None:
                    reply["stop"] = self.should_stop()
                    link.reply(worker.packed(reply))
        finally:
            worker.close()


class MeshEngine(StepEngine):
    """``Engine`` over several ranks, on the one that drives; see :class:`EngineRanks`.

    Attributes:
        max_batch_size: of all ranks together.
        max_context: as of ``Engine``.
    """

    def __init__(self, ranks: EngineRanks, worker: RankWorker, settings: dict[str, Any]) -> None:
        assert ranks.link is not None
        self._ranks = ranks
        self._link: RankLink = ranks.link
        self._worker = worker
        self._own: Engine = worker.engine
        self._is_open = False
        self._count = ranks.mesh.world_size
        self._sharing = Sharing(self._count, self._own.max_batch_size)
        self._cancelled: dict[int, list[str]] = {}
        self._lost: list[Event] = []
        self._stats = EngineStats()
        self.max_batch_size = self._own.max_batch_size * self._count
        self.max_context = self._own.max_context
        self.adapters = self._own.adapters
        self.tokenizer = self._own.tokenizer
        self._together({"do": "make", "settings": worker.told(settings)})

    @property
    def stats(self) -> EngineStats:
        """Counters of all ranks since the engine was made, gauges as of the last step; a copy."""
        return self._with_waiting(stats_of([vars(self._stats)]))

    @property
    def is_open(self) -> bool:
        """Whether the ranks hold caches and the model's weights must stay as they are."""
        return self._is_open

    @property
    def has_work(self) -> bool:
        """Whether any answer is unfinished."""
        return self._is_open and bool(self._sharing.shares or self._lost)

    def open(self, *, needed_tokens: int | None = None) -> None:
        """As ``Engine.open``, on every rank. ``needed_tokens`` counts the requests of all ranks.

        Raises:
            EngineError: it is open already, or a rank has no memory for its cache.
        """
        self._open(needed_tokens or self.max_batch_size * self.max_context)

    def close(self) -> None:
        """Drop unfinished answers and all that was cached, and give the model back as it was, on every rank."""
        if not self._is_open:
            return
        self._is_open = False
        self._forget()
        self._stats = replace(self._stats, running=0, waiting=0, blocks_used=0, blocks_cached=0, blocks_total=0)
        try:
            with contextlib.suppress(RankLostError):  # the others are gone, or leave by themselves
                self._link.order({"do": "close"}, {})
        finally:
            self._own.close()

    def check(self, request: GenerationRequest) -> None:
        """As ``Engine.check``: ranks are alike.

        Raises:
            EngineError: it cannot be served.
        """
        self._own.check(request)

    def submit(self, request: GenerationRequest) -> None:
        """As ``Engine.submit``.

        Raises:
            EngineError: it cannot be served, its id is in use, or the engine is closed.
        """
        self._require_open()
        self.check(request)
        if request.request_id in self._sharing.shares:
            raise same_id(request.request_id)
        self._sharing.add(request)

    def cancel(self, request_id: str) -> None:
        """As ``Engine.cancel``."""
        self._require_open()
        share = self._sharing.shares.get(request_id)
        if share is None:
            return
        if share.rank is not None:
            self._cancelled.setdefault(share.rank, []).append(request_id)
            return
        for index in sorted(share.unfinished):
            self._lost.append(FinishEvent(_cancelled(share, index)))
            self._sharing.finish(request_id, index)

    def step(self) -> list[Event]:
        """Compute one step on every rank; returns what has become certain, an answer's events in order.

        Raises:
            MS4Error: the step went wrong on a rank (named); the engine can be closed and opened again.
            RankLostError: a rank is gone.
        """
        self._require_open()
        if not self.has_work:
            return []
        progress.at("generation")
        events, self._lost = self._lost, []
        given, cancelled = self._sharing.hand_out(), self._cancelled
        self._cancelled = {}
        parts = {rank: (given.get(rank, []), cancelled.get(rank, [])) for rank in {*given, *cancelled}}
        replies = self._together({"do": "step"}, parts)
        self._stats = stats_of([reply["stats"] for reply in replies])
        for reply in replies:
            events += events_of(reply["events"])
        for event in events:
            if isinstance(event, FinishEvent):
                self._sharing.finish(event.completion.request_id, event.completion.index)
            else:
                self._sharing.advance(event.request_id, event.index, len(event.token_ids))
        return events

    def load_adapter(self, name: str, folder: str | Path) -> None:
        """As ``Engine.load_adapter``, on every rank or on none; the folder must be there for all of them.

        Raises:
            AdapterError: it cannot be used, does not fit the model, or its name is taken.
        """
        try:
            self._together({"do": "load", "name": name, "folder": str(folder)})
        except MS4Error:
            with contextlib.suppress(RankLostError):
                self._together({"do": "undo load"})
            raise

    def drop_adapter(self, name: str) -> None:
        """As ``Engine.drop_adapter``.

        Raises:
            AdapterError: there is none of this name.
            EngineError: unfinished requests use it.
        """
        if any(share.request.adapter == name for share in self._sharing.shares.values()):
            raise EngineError(f"unfinished requests use the adapter {name!r}.", key="adapter", fix="wait for them, or cancel them.")
        self._together({"do": "drop", "name": name})

    def _open(self, needed_tokens: int, longest: int | None = None) -> None:
        if self._is_open:
            raise EngineError("this engine is open already.", fix="close it first.")
        longest = self.max_context if longest is None else longest
        self._is_open = True
        try:
            # Requests go where there is least to do, so a rank gets its part of them and at most one more.
            self._together({"do": "open", "needed": -(-needed_tokens // self._count) + longest, "longest": longest})
        except BaseException:
            self.close()
            raise

    def _drop_all(self) -> None:
        self._forget()
        with contextlib.suppress(RankLostError):
            self._together({"do": "forget"})

    def _forget(self) -> None:
        self._sharing.clear()
        self._cancelled.clear()
        self._lost.clear()

    def _require_open(self) -> None:
        if not self._is_open:
            raise EngineError("this engine is closed.", fix="open it: with engine: ...")

    def _together(
        self, order: dict[str, Any], parts: dict[int, tuple[list[GenerationRequest], list[str]]] | None = None
    ) -> list[dict[str, Any]]:
        """Let every rank do something; their replies in the order of ranks.

        Raises:
            MS4Error: a rank could not, this one first.
        """
        packed = {rank: self._worker.packed_part(*part) for rank, part in (parts or {}).items()}
        self._link.order(order, packed)
        try:
            own = self._worker.obey(order, packed.get(0, b""))
        except BaseException:
            self._link.is_broken = True  # the others wait for this rank, in a pass or for an order
            raise
        assert own is not None
        replies = [own, *(self._worker.unpacked(reply) for reply in self._link.replies())]
        self._ranks.noticed(replies)
        if self._worker.failure is not None and "error" in own:
            raise self._worker.failure
        for rank, reply in enumerate(replies):
            if "error" in reply:
                raise error_of(reply["error"], rank=rank)
        return replies

    def _with_waiting(self, stats: EngineStats) -> EngineStats:
        stats.waiting += self._sharing.waiting
        return stats


def _cancelled(share: Share, index: int) -> Completion:
    """The end of an answer that no rank had begun."""
    return Completion(share.request.request_id, [], "cancelled", None, len(share.request.prompt_ids), 0, 0.0, index)
