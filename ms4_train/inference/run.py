"""An open engine: the sequences, the cache and the steps that carry them to their ends.

A step is: the scheduler's pieces, one call of the runner for all of them, one choice of tokens for the sequences that are complete, one
transfer of those tokens to Python. Used through ``Engine``.
Exercise it: ``pytest tests/ms4_train/inference/test_run.py``.

Shape suffixes: r wanted rows, d hidden, n image tokens.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ms4_train.errors import EngineError, MS4Error, ParallelError
from ms4_train.inference.blocks import BlockPool
from ms4_train.inference.detokenize import EngineTokenizer
from ms4_train.inference.image_features import ImageFeatureCache
from ms4_train.inference.logprobs import prompt_logprobs
from ms4_train.inference.paged_cache import PagedLatentCache
from ms4_train.inference.rank_link import lost
from ms4_train.inference.request import Completion, EngineStats, Event, FinishEvent, FinishReason, TokenEvent
from ms4_train.inference.sampling import NOT_FINITE, Choice, Sampler
from ms4_train.inference.scheduler import Piece, Scheduler, Step
from ms4_train.inference.sequence import Sequence
from ms4_train.inference.step import ImagePlaces, Runner, StepPiece
from ms4_train.model.multimodal import Mistral3ForConditionalGeneration
from ms4_train.model.network import Mistral4ForCausalLM

_LOGITS_AT_ONCE = 1 << 24
"""Values: logits of a long prompt are computed in parts of this size."""


@dataclass
class _Wanted:
    """What becomes of a step's hidden rows.

    Attributes:
        prompt: (piece, first row, rows) whose logits tell how likely the prompt's next tokens were.
        choosing: (sequence, row) pairs whose next token is chosen.
    """

    prompt: list[tuple[Piece, int, int]]
    choosing: list[tuple[Sequence, int]]


@dataclass
class _Begun:
    """A step that is ready to be computed."""

    step: Step
    pieces: list[StepPiece]
    wanted: _Wanted


class Run:
    """Computes steps until its sequences have ended.

    Args:
        runner: opened here.
        cache: whose blocks are handed out here.
        model: the runner's.
        tokenizer: names the end token.
        stats: counters that are kept up to date.
        max_running: most sequences at once.
        token_budget: most tokens per step.
        prefix_cache: whether full blocks can be found again.
        images_apart: whether images pass the tower one by one.
    """

    def __init__(
        self,
        *,
        runner: Runner,
        cache: PagedLatentCache,
        model: Mistral4ForCausalLM,
        tokenizer: EngineTokenizer,
        stats: EngineStats,
        max_running: int,
        token_budget: int,
        prefix_cache: bool,
        images_apart: bool,
    ) -> None:
        self._runner = runner
        self._cache = cache
        self._model = model
        self._eos_id = tokenizer.eos_id
        self._stats = stats
        self._vocab_size = min(tokenizer.vocab_size, model.config.vocab_size)
        self._device = model.model.embed_tokens.weight.device
        self._pool = BlockPool(cache.num_blocks, caches=prefix_cache)
        self._scheduler = Scheduler(self._pool, block_size=cache.block_size, max_running=max_running, token_budget=token_budget)
        self._sampler = Sampler(
            vocab_size=self._vocab_size, eos_id=self._eos_id, special=getattr(tokenizer, "ids", None), device=self._device
        )
        self._unfinished: Counter[str] = Counter()
        self._pending: list[Event] = []
        self._features: ImageFeatureCache | None = None
        if isinstance(model, Mistral3ForConditionalGeneration):
            self._features = ImageFeatureCache(runner.image_features, model.vision_config.spatial_merge_size, apart=images_apart)
        runner.open()

    def close(self) -> None:
        """Give the model back."""
        self.drop_all()
        self._runner.close()
        self.update_gauges(closed=True)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything, or events wait."""
        return bool(self._pending or self._unfinished)

    def holds(self, request_id: str) -> bool:
        """Whether a request has unfinished answers."""
        return self._unfinished[request_id] > 0

    def uses_adapter(self, name: str) -> bool:
        """Whether an unfinished answer is computed with this adapter."""
        return any(sequence.request.adapter == name for sequence in self._scheduler.sequences)

    def adapters_changed(self) -> None:
        """Let the runner see the adapters of now."""
        self._runner.close()
        self._runner.open()

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Queue the sequences of a request."""
        for sequence in sequences:
            self._unfinished[sequence.request.request_id] += 1
            self._scheduler.add(sequence)

    def cancel(self, request_id: str) -> None:
        """End a request's unfinished answers; their events come with the next step."""
        for sequence in self._scheduler.sequences:
            if sequence.request.request_id == request_id:
                self._finish(sequence, "cancelled", self._pending)

    def drop_all(self) -> None:
        """Forget all unfinished answers, without events."""
        for sequence in self._scheduler.sequences:
            self._scheduler.remove(sequence)
        self._unfinished.clear()
        self._pending.clear()

    # Not around a whole call: a stream hands control back to its reader between steps, and would take the mode along.
    @torch.inference_mode()
    def step(self, *, together: bool = False) -> list[Event]:
        """Compute one step; returns what has become certain, events of one answer in order.

        Args:
            together: ranks that share the experts compute a pass at once. Then there is exactly one pass in every step: an empty one with
                nothing to do, or where preparing failed.

        Raises:
            ParallelError: with ``together``: the pass itself failed. Other ranks may still wait in it, so nothing can go on.
            Exception: anything else that went wrong; with ``together`` this rank has met the others all the same.
        """
        events, self._pending = self._pending, []
        begun: _Begun | None = None
        failure: Exception | None = None
        try:
            begun = self._begin_step()
        except Exception as error:
            if not together:
                raise
            failure = error
        if begun is None and not together:
            return events
        hidden_rd = self._pass(begun.pieces if begun else [], together=together)
        if failure is not None:
            raise failure
        if begun is None:
            return events
        self._scheduler.finish_step(begun.step)
        self._stats.steps += 1
        self._score_prompts(hidden_rd, begun.wanted)
        if begun.wanted.choosing:
            self._choose(hidden_rd, begun.wanted.choosing, events)
        return events

    def _begin_step(self) -> _Begun | None:
        """What the step computes; None for nothing."""
        step = self._scheduler.next_step()
        if not step.pieces:
            return None
        now = time.perf_counter()
        for piece in step.pieces:
            if not piece.sequence.started:
                self._begin(piece.sequence, now)
            if not piece.sequence.generated_ids:
                self._stats.prompt_tokens += piece.length
        if step.fresh:
            self._cache.clear_blocks(step.fresh)
        if step.copies:
            self._cache.copy_blocks(step.copies)
        return _Begun(step, *self._prepare(step.pieces))

    def _pass(self, pieces: list[StepPiece], *, together: bool) -> Tensor:
        try:
            return self._runner.run(pieces)
        except Exception as error:
            if not together:
                raise
            own = ParallelError(
                f"a pass that all ranks compute together failed here: {type(error).__name__}: {error}",
                key="generation",
                fix="where memory is short, lower engine.max_batch_size or engine.max_context; else see what the other ranks printed.",
            )
            raise lost(error) or own from error

    def update_gauges(self, *, closed: bool = False) -> None:
        """Write what is now into the counters."""
        stats = self._stats
        stats.preemptions += self._scheduler.preemptions
        self._scheduler.preemptions = 0
        stats.running, stats.waiting = self._scheduler.num_running, self._scheduler.num_waiting
        stats.blocks_used = self._pool.num_used
        stats.blocks_cached = 0 if closed else self._pool.num_cached
        stats.blocks_total = 0 if closed else self._pool.num_blocks
        stats.bytes_per_block = self._cache.bytes_per_block

    def _begin(self, sequence: Sequence, now: float) -> None:
        sequence.started = now
        self._stats.cached_tokens += sequence.cached_tokens
        self._stats.prompt_tokens += sequence.cached_tokens

    def _prepare(self, pieces: list[Piece]) -> tuple[list[StepPiece], _Wanted]:
        """The pieces as the runner takes them, and what their rows are for."""
        prepared: list[StepPiece] = []
        wanted = _Wanted([], [])
        row = 0
        for piece in pieces:
            sequence, start, stop = piece.sequence, piece.start, piece.start + piece.length
            offsets: list[int] = []
            if sequence.prompt_logprobs and len(sequence.prompt_logprobs) < len(sequence.prompt_ids):
                # Token i + 1 is judged by row i.
                first, last = max(start, len(sequence.prompt_logprobs) - 1), min(stop, len(sequence.prompt_ids) - 1)
                offsets += range(first - start, last - start)
                if offsets:
                    wanted.prompt.append((piece, row, len(offsets)))
            if piece.chooses:
                offsets.append(piece.length - 1)
                wanted.choosing.append((sequence, row + len(offsets) - 1))
            row += len(offsets)
            prepared.append(
                StepPiece(
                    sequence.token_ids[start:stop],
                    start,
                    sequence.blocks,
                    offsets,
                    sequence.request.adapter,
                    self._places(sequence, start, stop),
                )
            )
        return prepared, wanted

    def _places(self, sequence: Sequence, start: int, stop: int) -> ImagePlaces | None:
        """The image tokens of a piece. An image token that the model itself chose is a token like any other."""
        images = sequence.images
        if images is None:
            return None
        first, last = images.between(start, stop)
        if first == last:
            return None
        if not images.features:
            assert self._features is not None
            assert sequence.request.images is not None
            batch = sequence.request.images.to(self._device)
            images.features.append(self._features.features(batch, images.digests, sequence.request.adapter, sequence.root))
        return ImagePlaces(tuple(place - start for place in images.places[first:last]), images.features[0][first:last])

    def _score_prompts(self, hidden_rd: Tensor, wanted: _Wanted) -> None:
        """Log probabilities of prompt tokens, in parts: all logits of a long prompt rarely fit."""
        rows_at_once = max(1, _LOGITS_AT_ONCE // self._vocab_size)
        for piece, first, rows in wanted.prompt:
            sequence = piece.sequence
            top = sequence.params.prompt_logprobs
            assert top is not None
            for start in range(first, first + rows, rows_at_once):
                count = min(rows_at_once, first + rows - start)
                logits_rv = self._runner.logits(hidden_rd[start : start + count], [sequence.request.adapter] * count)
                known = len(sequence.prompt_logprobs)
                next_ids = torch.tensor(sequence.prompt_ids[known : known + count], device=self._device)
                sequence.prompt_logprobs += prompt_logprobs(logits_rv, next_ids, top, self._vocab_size)

    def _choose(self, hidden_rd: Tensor, choosing: list[tuple[Sequence, int]], events: list[Event]) -> None:
        """Choose the next token of each sequence and end those that end with it."""
        if len(choosing) < len(hidden_rd):
            hidden_rd = hidden_rd[torch.tensor([row for _, row in choosing], device=hidden_rd.device)]
        sequences = [sequence for sequence, _ in choosing]
        logits_rv = self._runner.logits(hidden_rd, [sequence.request.adapter for sequence in sequences])
        now = 0.0
        for sequence, choice in zip(sequences, self._sampler.choose(logits_rv, sequences), strict=True):
            if not sequence.first_token:
                now = now or time.perf_counter()
                sequence.first_token = now
            self._take(sequence, choice, events)
        self._stats.generated_tokens += len(sequences)

    def _take(self, sequence: Sequence, choice: Choice, events: list[Event]) -> None:
        if choice.token_id == NOT_FINITE:
            self._fail(sequence, self._not_finite(sequence), events)
            return
        try:
            reason = sequence.accept(choice.token_id, choice.logprobs, self._eos_id)
        except MS4Error as error:
            self._fail(sequence, EngineError(error.message, key=error.key or sequence.request.request_id, fix=error.fix), events)
            return
        if reason is None:
            self._report(sequence, events)
        else:
            self._finish(sequence, reason, events)

    def _not_finite(self, sequence: Sequence) -> EngineError:
        return EngineError(
            f"the model's logits are not finite at token {sequence.wanted} of the sequence.",
            key=sequence.request.request_id,
            fix="check the weights, or load them in bfloat16 or float32.",
        )

    def _report(self, sequence: Sequence, events: list[Event]) -> None:
        """An event for what has become certain since the last one."""
        tokens, logprobs = sequence.output_ids[sequence.reported :], sequence.logprobs[sequence.reported_logprobs :]
        if tokens or logprobs:
            events.append(TokenEvent(sequence.request.request_id, sequence.index, tuple(tokens), tuple(logprobs)))
            sequence.reported, sequence.reported_logprobs = len(sequence.output_ids), len(sequence.logprobs)

    def _fail(self, sequence: Sequence, error: EngineError, events: list[Event]) -> None:
        self._finish(sequence, "error", events, error)

    def _finish(self, sequence: Sequence, reason: FinishReason, events: list[Event], error: EngineError | None = None) -> None:
        """Take a sequence out and report its end."""
        self._scheduler.remove(sequence)
        if reason in ("cancelled", "error") and sequence.matcher.matched is None:
            sequence.output_ids += sequence.matcher.finish()
        self._report(sequence, events)
        request_id = sequence.request.request_id
        self._unfinished[request_id] -= 1
        if not self._unfinished[request_id]:
            del self._unfinished[request_id]
        self._stats.finished[reason] = self._stats.finished.get(reason, 0) + 1
        self._stats.forced_thoughts += sequence.thought.state == "forced"
        events.append(FinishEvent(replace(_completion(sequence, reason), error=error)))


def _completion(sequence: Sequence, reason: FinishReason) -> Completion:
    now = time.perf_counter()
    params = sequence.params
    return Completion(
        request_id=sequence.request.request_id,
        index=sequence.index,
        token_ids=sequence.output_ids,
        finish_reason=reason,
        stop_reason=sequence.stop_reason,
        prompt_tokens=len(sequence.prompt_ids),
        cached_tokens=max(0, sequence.cached_tokens),
        generated_tokens=len(sequence.generated_ids),
        seconds=now - sequence.started if sequence.started else 0.0,
        queue_seconds=(sequence.started or now) - sequence.arrived,
        first_token_seconds=sequence.first_token - sequence.arrived if sequence.first_token else 0.0,
        thinking=sequence.thought.state,
        logprobs=sequence.logprobs if params.logprobs is not None else None,
        prompt_logprobs=sequence.prompt_logprobs if params.prompt_logprobs is not None else None,
    )
