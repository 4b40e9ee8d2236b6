"""One call of the engine: the sequences, the cache and the steps that carry them to their ends.

A step is: the scheduler's pieces, one forward per kind of piece (prompts from their first token in the expanded form of attention, parts of
prompts and single tokens in the absorbed form against the cache), one choice of tokens for all sequences that are complete, one transfer
of those tokens to Python. Used through ``Engine``.
Exercise it: ``pytest tests/ms4_train/inference/test_session.py``.
"""

from __future__ import annotations

import time
from types import TracebackType

import torch
from torch import Tensor, nn

from ms4_train.errors import EngineError
from ms4_train.inference.detokenize import EngineTokenizer, StopMatcher
from ms4_train.inference.latent_cache import SlotLatentCache
from ms4_train.inference.request import Completion, FinishReason, GenerationRequest, Progress
from ms4_train.inference.sampling import NOT_FINITE, BatchSampler
from ms4_train.inference.scheduler import Piece, Scheduler, Sequence
from ms4_train.model.layout import SequenceLayout
from ms4_train.model.multimodal import Mistral3ForConditionalGeneration
from ms4_train.model.network import Mistral4ForCausalLM


class Session:
    """Generates for a fixed set of requests; a context manager that leaves the model as it found it.

    Args:
        model: is put into evaluation mode and prepared for decoding inside the context.
        tokenizer: spells tokens for stop texts and names the end token.
        requests: already checked against the model by the engine.
        scheduler: empty.
        cache: empty, with as many slots as the scheduler runs sequences.
    """

    def __init__(
        self,
        model: Mistral4ForCausalLM,
        tokenizer: EngineTokenizer,
        requests: list[GenerationRequest],
        scheduler: Scheduler,
        cache: SlotLatentCache,
    ) -> None:
        self.sequences = [Sequence(request, index, StopMatcher(tokenizer, request.sampling.stop)) for index, request in enumerate(requests)]
        self._model = model
        self._eos_id = tokenizer.eos_id
        self._vocab_size = min(tokenizer.vocab_size, model.config.vocab_size)
        self._device = model.model.embed_tokens.weight.device
        self._scheduler = scheduler
        self._cache = cache
        self._sampler: BatchSampler | None = None
        self._sampled: list[Sequence] = []
        self._modes: list[tuple[nn.Module, bool]] = []
        self._finished = 0
        self._generated_tokens = 0
        self._prompt_tokens = 0
        self._steps = 0
        self._began = time.perf_counter()
        for sequence in self.sequences:
            scheduler.add(sequence)

    def __enter__(self) -> Session:
        self._modes = [(module, module.training) for module in self._model.modules()]
        self._began = time.perf_counter()
        self._model.eval()
        with torch.inference_mode():
            self._model.prepare_decode()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._model.release_decode()
        for module, was_training in self._modes:
            module.training = was_training

    @property
    def is_done(self) -> bool:
        """Whether every request has finished."""
        return self._finished == len(self.sequences)

    @property
    def progress(self) -> Progress:
        """Where the call stands."""
        return Progress(
            finished=self._finished,
            running=self._scheduler.num_running,
            waiting=self._scheduler.num_waiting,
            generated_tokens=self._generated_tokens,
            prompt_tokens=self._prompt_tokens,
            steps=self._steps,
            cache_bytes=self._cache.num_bytes,
            seconds=time.perf_counter() - self._began,
        )

    # Not around the whole call: a stream hands control back to its reader between steps, and would take the mode along.
    @torch.inference_mode()
    def step(self) -> list[tuple[Sequence, Completion]]:
        """Computes one step; returns the sequences that ended in it.

        Raises:
            EngineError: the model computed logits that are not finite.
        """
        pieces = self._scheduler.next_step()
        now = time.perf_counter()
        for piece in pieces:
            if piece.start == 0:
                piece.sequence.started = now
        self._cache.reserve(self._scheduler.num_running, max(piece.start + piece.length for piece in pieces))
        hidden_bd: list[Tensor] = []
        choosing: list[Sequence] = []
        for group in _groups(pieces):
            hidden_bd.append(self._forward(group))
            choosing += [piece.sequence for piece in group if piece.chooses]
        self._steps += 1
        return self._choose(torch.cat(hidden_bd), choosing) if choosing else []

    def _forward(self, pieces: list[Piece]) -> Tensor:
        """Computes pieces of one kind; returns the hidden state behind each piece that completes its sequence [b, d]."""
        token_ids: list[int] = []
        last_tokens: list[int] = []
        for piece in pieces:
            token_ids += piece.sequence.token_ids[piece.start : piece.start + piece.length]
            piece.sequence.computed = piece.start + piece.length
            if piece.chooses:
                last_tokens.append(len(token_ids) - 1)
            if piece.sequence.num_generated == 0:
                self._prompt_tokens += piece.length
        layout = SequenceLayout(
            lengths=tuple(piece.length for piece in pieces),
            starts=tuple(piece.start for piece in pieces),
            slots=tuple(piece.sequence.slot for piece in pieces),
        )
        hidden_td = self._model.model(self._embed(pieces, torch.tensor(token_ids, device=self._device)), layout, self._cache)
        if len(last_tokens) == len(token_ids):
            return hidden_td
        return hidden_td[torch.tensor(last_tokens, dtype=torch.int64, device=self._device)]

    def _embed(self, pieces: list[Piece], token_ids_t: Tensor) -> Tensor:
        """Embeddings of the pieces' tokens [t, d], with images in the places of a prompt's image tokens.

        The images of a request pass the tower once, at its first piece; later pieces take what the earlier ones left. An image token that
        the model itself chose is a token like any other.
        """
        embedding_td = self._model.model.embed_tokens(token_ids_t)
        first = 0
        for piece in pieces:
            sequence, stop = piece.sequence, first + piece.length
            if piece.start == 0 and sequence.request.images is not None:
                assert isinstance(self._model, Mistral3ForConditionalGeneration)
                sequence.features_nd = self._model.image_features(sequence.request.images.to(self._device))
            if sequence.features_nd is not None:
                assert isinstance(self._model, Mistral3ForConditionalGeneration)
                places = (token_ids_t[first:stop] == self._model.vision_config.image_token_index).nonzero()[:, 0] + first
                embedding_td[places] = sequence.features_nd[: len(places)].to(embedding_td.dtype)
                left_nd = sequence.features_nd[len(places) :]
                sequence.features_nd = left_nd if len(left_nd) else None
            first = stop
        return embedding_td

    def _choose(self, hidden_bd: Tensor, sequences: list[Sequence]) -> list[tuple[Sequence, Completion]]:
        """Chooses the next token of each sequence and takes out those that end with it."""
        if self._sampler is None or sequences != self._sampled:
            self._sampler = BatchSampler([sequence.request.sampling for sequence in sequences], self._device, self._vocab_size)
            self._sampled = sequences
        positions = [sequence.num_generated for sequence in sequences]
        token_b = self._sampler.sample(self._model.logits(hidden_bd), positions)
        ended: list[tuple[Sequence, Completion]] = []
        for sequence, token_id in zip(sequences, token_b.tolist(), strict=True):
            completion = self._accept(sequence, token_id)
            if completion is not None:
                ended.append((sequence, completion))
        # From the last slot down: then a sequence that ends itself is never moved into a gap first.
        for sequence, _ in sorted(ended, key=lambda item: -item[0].slot):
            move = self._scheduler.finish(sequence)
            if move is not None:
                self._cache.move(move.source, move.target, move.length)
        self._finished += len(ended)
        self._generated_tokens += len(sequences)
        return ended

    def _accept(self, sequence: Sequence, token_id: int) -> Completion | None:
        """Adds a chosen token; returns the completion if the answer ends with it."""
        sampling = sequence.request.sampling
        if token_id == NOT_FINITE:
            raise EngineError(
                f"the model's logits are not finite at token {sequence.wanted} of the sequence.",
                key=sequence.request.request_id,
                fix="check the weights, or load them in bfloat16 or float32.",
            )
        sequence.token_ids.append(token_id)
        if token_id == self._eos_id:
            return self._complete(sequence, "stop", None)
        if token_id in sampling.stop_token_ids:
            return self._complete(sequence, "stop", str(token_id))
        matcher = sequence.matcher
        sequence.output_ids += matcher.push(token_id)
        if matcher.matched is not None:
            return self._complete(sequence, "stop", matcher.matched)
        if sequence.num_generated == sampling.max_tokens:
            return self._complete(sequence, "length", None)
        return None

    def _complete(self, sequence: Sequence, finish_reason: FinishReason, stop_reason: str | None) -> Completion:
        if sequence.matcher.matched is None:
            sequence.output_ids += sequence.matcher.finish()
        return Completion(
            request_id=sequence.request.request_id,
            token_ids=sequence.output_ids,
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            prompt_tokens=len(sequence.request.prompt_ids),
            generated_tokens=sequence.num_generated,
            seconds=time.perf_counter() - sequence.started,
        )


def _groups(pieces: list[Piece]) -> list[list[Piece]]:
    """Pieces by kind: first tokens of prompts, further parts of prompts, single tokens; each kind is one efficient forward."""
    first = [piece for piece in pieces if piece.start == 0]
    further = [piece for piece in pieces if piece.start and piece.length > 1]
    single = [piece for piece in pieces if piece.start and piece.length == 1]
    return [group for group in (first, further, single) if group]
