"""What is done to raw logits before a token is chosen: bias, penalties, and ends that come too early.

In this order: ``logit_bias``; then for tokens that prompt or answer hold the repetition penalty (CTRL, arXiv 1909.05858), for those that
the answer holds the frequency penalty times their count, and the presence penalty; then end and stop tokens of an answer below
``min_tokens`` become impossible. Counts are kept from step to step.
Exercise it: ``pytest tests/ms4_train/inference/test_penalties.py``.

Shape suffixes: e edited rows, v vocabulary, k (row, token) places that are penalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ms4_train.inference.sampling_params import SamplingParams


class EditedRow(Protocol):
    """What an edit depends on."""

    @property
    def params(self) -> SamplingParams:
        """Of the answer."""
        ...

    @property
    def prompt_ids(self) -> Sequence[int]:
        """Tokens of the prompt."""
        ...

    @property
    def generated_ids(self) -> Sequence[int]:
        """Tokens chosen so far."""
        ...


def is_penalised(params: SamplingParams) -> bool:
    """Whether logits depend on the tokens before."""
    return params.presence_penalty != 0 or params.frequency_penalty != 0 or params.repetition_penalty != 1


def end_ids(params: SamplingParams, eos_id: int, vocab_size: int) -> list[int]:
    """Tokens that end an answer."""
    ends = set(params.stop_token_ids) | (set() if params.ignore_eos else {eos_id})
    return sorted(token_id for token_id in ends if token_id < vocab_size)


class TokenCounts:
    """Which tokens an answer's penalties concern, and how often the answer holds each.

    Args:
        row: its prompt counts only for the repetition penalty.
        vocab_size: ids from here on are left out.
    """

    def __init__(self, row: EditedRow, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._seen = 0
        prompt = set(row.prompt_ids) if row.params.repetition_penalty != 1 else set()
        self.counts: dict[int, int] = dict.fromkeys(sorted(token_id for token_id in prompt if token_id < vocab_size), 0)

    def catch_up(self, generated_ids: Sequence[int]) -> set[int]:
        """Count what has been generated since the last call; returns the tokens whose counts have changed."""
        changed: set[int] = set()
        for position in range(self._seen, len(generated_ids)):
            token_id = generated_ids[position]
            if token_id < self._vocab_size:
                self.counts[token_id] = self.counts.get(token_id, 0) + 1
                changed.add(token_id)
        self._seen = len(generated_ids)
        return changed


class Penalties:
    """Penalised places of several rows, as flat tensors that grow with the answers.

    Args:
        rows: local row numbers and rows that are penalised.
        counts: of each; what they have counted already is taken over.
        device: of the logits.
        vocab_size: columns of the logits.
    """

    def __init__(self, rows: Sequence[tuple[int, EditedRow]], counts: Sequence[TokenCounts], device: torch.device, vocab_size: int) -> None:
        self._rows = list(zip(rows, counts, strict=True))
        self._vocab_size = vocab_size
        self._device = device
        self._index: dict[int, int] = {}
        for (number, row), count in self._rows:
            count.catch_up(row.generated_ids)
            for token_id in count.counts:
                self._index[number * vocab_size + token_id] = len(self._index)
        self._size = len(self._index)
        room = 2 * self._size + 64
        self._place_k = torch.zeros(room, dtype=torch.int64, device=device)
        self._count_k = torch.zeros(room, dtype=torch.float32, device=device)
        self._strength_3k = torch.zeros(3, room, dtype=torch.float32, device=device)  # repetition, frequency, presence
        known = [(number, row.params, token_id, times) for (number, row), count in self._rows for token_id, times in count.counts.items()]
        self._write(0, known)

    def _write(self, start: int, entries: Sequence[tuple[int, SamplingParams, int, int]]) -> None:
        """Fill places from ``start`` on with (row, params, token, count)."""
        if not entries:
            return
        end = start + len(entries)
        places = [number * self._vocab_size + token_id for number, _, token_id, _ in entries]
        self._place_k[start:end] = torch.tensor(places, device=self._device)
        self._count_k[start:end] = torch.tensor([times for *_, times in entries], dtype=torch.float32, device=self._device)
        strengths = [(params.repetition_penalty, params.frequency_penalty, params.presence_penalty) for _, params, _, _ in entries]
        self._strength_3k[:, start:end] = torch.tensor(strengths, dtype=torch.float32, device=self._device).T

    def _catch_up(self) -> None:
        """Bring the places up to date with the tokens that the rows have gained."""
        known: list[int] = []
        times: list[float] = []
        new: list[tuple[int, SamplingParams, int, int]] = []
        for (number, row), count in self._rows:
            for token_id in count.catch_up(row.generated_ids):
                slot = self._index.get(number * self._vocab_size + token_id)
                if slot is None:
                    self._index[number * self._vocab_size + token_id] = self._size + len(new)
                    new.append((number, row.params, token_id, count.counts[token_id]))
                else:
                    known.append(slot)
                    times.append(count.counts[token_id])
        if known:
            self._count_k[torch.tensor(known, device=self._device)] = torch.tensor(times, dtype=torch.float32, device=self._device)
        while self._size + len(new) > len(self._place_k):
            self._place_k = torch.cat([self._place_k, torch.zeros_like(self._place_k)])
            self._count_k = torch.cat([self._count_k, torch.zeros_like(self._count_k)])
            self._strength_3k = torch.cat([self._strength_3k, torch.zeros_like(self._strength_3k)], dim=1)
        self._write(self._size, new)
        self._size += len(new)

    def apply(self, logits_ev: Tensor) -> None:
        """Change contiguous fp32 logits in place."""
        self._catch_up()
        place_k, count_k = self._place_k[: self._size], self._count_k[: self._size]
        repetition_k, frequency_k, presence_k = self._strength_3k[:, : self._size]
        logit_k = logits_ev.view(-1)[place_k]
        logit_k = torch.where(logit_k > 0, logit_k / repetition_k, logit_k * repetition_k)
        logit_k = logit_k - frequency_k * count_k - presence_k * (count_k > 0)
        logits_ev.view(-1)[place_k] = logit_k


class Bias:
    """The ``logit_bias`` of several rows; values for the same token add up.

    Args:
        rows: the rows of the logits in order.
        device: of the logits.
        vocab_size: ids from here on are left out.
    """

    def __init__(self, rows: Sequence[EditedRow], device: torch.device, vocab_size: int) -> None:
        value_of: dict[int, float] = {}
        for number, row in enumerate(rows):
            for token_id, value in row.params.logit_bias:
                if token_id < vocab_size:
                    value_of[number * vocab_size + token_id] = value_of.get(number * vocab_size + token_id, 0.0) + value
        self._place_k = torch.tensor(list(value_of), dtype=torch.int64, device=device)
        self._value_k = torch.tensor(list(value_of.values()), dtype=torch.float32, device=device)

    def apply(self, logits_ev: Tensor) -> None:
        """Change contiguous fp32 logits in place."""
        if len(self._place_k):
            logits_ev.view(-1)[self._place_k] += self._value_k


def forbid(logits_ev: Tensor, places: Sequence[int]) -> None:
    """Make (row * v + token) places of contiguous logits impossible, in place."""
    logits_ev.view(-1)[torch.tensor(places, device=logits_ev.device)] = -torch.inf
