"""From a step's logits to one token per answer, in this order: raw log probabilities, where asked for; ``logit_bias``, penalties, ends that
come too early (``penalties``); the form that the answer must have (``constraints``); then the most likely token, or one that is drawn
(``drawing``); and the token that a spent thinking budget forces.

Every row is handled by its own parameters and numbers alone: its token is the same bits in any company. A row that only wants the most
likely token costs a search for the maximum.
Exercise it: ``pytest tests/ms4_train/inference/test_sampling.py``.

Shape suffixes: r rows of a step, g rows of a group, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ms4_train.inference.constraints import Constraint
from ms4_train.inference.drawing import Draws, is_filtered, sample_seed
from ms4_train.inference.logprobs import token_logprobs
from ms4_train.inference.penalties import Bias, EditedRow, Penalties, TokenCounts, end_ids, forbid, is_penalised
from ms4_train.inference.request import TokenLogprobs
from ms4_train.inference.thinking import ThinkingIds, Thought

__all__ = ["NOT_FINITE", "Choice", "Sampler", "SamplingRow", "sample_seed"]

NOT_FINITE = -1


class Choice(NamedTuple):
    """What was chosen for one row.

    Attributes:
        token_id: ``NOT_FINITE`` where the row's logits hold NaN or +infinity, or nothing else than -infinity.
        logprobs: where the row asks for them and its logits are finite.
    """

    token_id: int
    logprobs: TokenLogprobs | None = None


class SamplingRow(EditedRow, Protocol):
    """An answer whose next token is chosen; its owner appends it to ``generated_ids`` and tells ``constraint`` and ``thought``."""

    @property
    def seed(self) -> int:
        """Names its random numbers."""
        ...

    @property
    def constraint(self) -> Constraint | None:
        """The form that it must have."""
        ...

    @property
    def thought(self) -> Thought:
        """Its thinking so far."""
        ...


class Sampler:
    """Chooses tokens for a batch. What it lays out for its rows it keeps while the same rows come again.

    Args:
        vocab_size: ids from here on are never chosen (rows of the head that the tokenizer has no token for).
        eos_id: the end token.
        special: control tokens of thinking; None for a tokenizer that has none. ``thought`` knows them, so nothing here needs them.
        device: of the logits.
    """

    def __init__(self, *, vocab_size: int, eos_id: int, special: ThinkingIds | None, device: torch.device | str) -> None:
        self._vocab_size = vocab_size
        self._eos_id = eos_id
        self._device = torch.device(device)
        self._rows: list[SamplingRow] = []
        self._groups: list[_Group] = []
        self._wants_logprobs: list[int] = []
        self._counts: dict[int, tuple[SamplingRow, TokenCounts]] = {}

    def choose(self, logits_rv: Tensor, rows: Sequence[SamplingRow]) -> list[Choice]:
        """The next token of each row.

        Args:
            logits_rv: fp32, left as they are; columns past the vocabulary do not count.
            rows: of the logits. Rows are told apart by identity.
        """
        if len(rows) != len(self._rows) or any(map(_is_not, rows, self._rows)):
            self._lay_out(rows)
        if logits_rv.shape[1] > self._vocab_size:
            logits_rv = logits_rv[:, : self._vocab_size]
        if len(self._groups) == 1:
            token_r = self._groups[0].choose(logits_rv)
        else:
            token_r = [NOT_FINITE] * len(rows)
            for group in self._groups:
                for row, token_id in zip(group.places, group.choose(logits_rv[group.place_tensor_g]), strict=True):
                    token_r[row] = token_id
        if not self._wants_logprobs:
            return [Choice(token_id) for token_id in token_r]
        return self._with_logprobs(logits_rv, token_r)

    def _with_logprobs(self, logits_rv: Tensor, token_r: list[int]) -> list[Choice]:
        logprobs: list[TokenLogprobs | None] = [None] * len(token_r)
        wanting = [row for row in self._wants_logprobs if token_r[row] != NOT_FINITE]
        if wanting:
            wanted = logits_rv if len(wanting) == len(token_r) else logits_rv[torch.tensor(wanting, device=logits_rv.device)]
            tops = [self._rows[row].params.logprobs or 0 for row in wanting]
            for row, found in zip(wanting, token_logprobs(wanted, [token_r[row] for row in wanting], tops), strict=True):
                logprobs[row] = found
        return [Choice(token_id, found) for token_id, found in zip(token_r, logprobs, strict=True)]

    def _lay_out(self, rows: Sequence[SamplingRow]) -> None:
        """Prepare for these rows: those whose logits are edited, which are copied for it, and the others."""
        self._rows = list(rows)
        self._wants_logprobs = [row for row, item in enumerate(rows) if item.params.logprobs is not None]
        counted = [item for item in rows if is_penalised(item.params)]
        self._counts = {id(item): self._counts.get(id(item)) or (item, TokenCounts(item, self._vocab_size)) for item in counted}
        edited = [row for row, item in enumerate(rows) if _is_edited(item)]
        plain = [row for row, item in enumerate(rows) if not _is_edited(item)]
        self._groups = []
        for places in (plain, edited):
            if places:
                members = [rows[place] for place in places]
                edits = None
                if places is edited:
                    counts = [self._counts[id(item)][1] for item in members if is_penalised(item.params)]
                    edits = _Edits(members, counts, self._device, self._vocab_size, self._eos_id)
                self._groups.append(_Group(places, members, edits, self._device))


class _Group:
    """Rows of a step whose tokens are chosen together: ``places`` says which."""

    def __init__(self, places: list[int], rows: Sequence[SamplingRow], edits: _Edits | None, device: torch.device) -> None:
        self.places = places
        self.place_tensor_g = torch.tensor(places, dtype=torch.int64, device=device)
        self._rows = rows
        self._edits = edits
        self._budgeted = [row for row, item in enumerate(rows) if item.params.thinking_budget is not None]
        self._draws: list[tuple[list[int], Tensor, Draws]] = []
        drawing = [row for row, item in enumerate(rows) if item.params.temperature > 0]
        for filtered in (False, True):
            members = [row for row in drawing if is_filtered(rows[row].params) == filtered]
            if members:
                draws = Draws([rows[row].params for row in members], [rows[row].seed for row in members], device)
                self._draws.append((members, torch.tensor(members, dtype=torch.int64, device=device), draws))

    def choose(self, logits_gv: Tensor) -> list[int]:
        """The next token of each row of the group, ``NOT_FINITE`` as in ``Choice``."""
        allowed: dict[int, NDArray[np.bool_]] = {}
        broken: list[int] = []
        if self._edits is not None:
            broken = [row for row, token_id in enumerate(most_likely(logits_gv)) if token_id == NOT_FINITE]
            logits_gv, allowed = self._edits.apply(logits_gv)
        token_g = most_likely(logits_gv)
        for members, member_tensor, draws in self._draws:
            part = logits_gv if len(members) == len(self._rows) else logits_gv[member_tensor]
            drawn = draws.draw(part, [len(self._rows[row].generated_ids) for row in members]).tolist()
            for row, token_id in zip(members, drawn, strict=True):
                if token_g[row] != NOT_FINITE:
                    token_g[row] = token_id
        for row in self._budgeted:
            forced = self._rows[row].thought.forced_token()
            # A form may know thoughts of its own; then the form decides.
            if forced is not None and token_g[row] != NOT_FINITE and (row not in allowed or allowed[row][forced]):
                token_g[row] = forced
        for row in broken:
            token_g[row] = NOT_FINITE
        return token_g


class _Edits:
    """What is done to the logits of a group before a token is chosen."""

    def __init__(
        self, rows: Sequence[SamplingRow], counts: Sequence[TokenCounts], device: torch.device, vocab_size: int, eos_id: int
    ) -> None:
        self._vocab_size = vocab_size
        self._rows = rows
        self._bias = Bias(rows, device, vocab_size) if any(row.params.logit_bias for row in rows) else None
        penalised = [(number, row) for number, row in enumerate(rows) if is_penalised(row.params)]
        self._penalties = Penalties(penalised, counts, device, vocab_size) if penalised else None
        self._ends = {number: end_ids(row.params, eos_id, vocab_size) for number, row in enumerate(rows) if row.params.min_tokens}
        self._formed = [(number, row.constraint) for number, row in enumerate(rows) if row.constraint is not None]
        self._formed_tensor = torch.tensor([number for number, _ in self._formed], dtype=torch.int64, device=device)

    def apply(self, logits_gv: Tensor) -> tuple[Tensor, dict[int, NDArray[np.bool_]]]:
        """Edited logits, a copy, and what the forms of constrained rows allow."""
        logits_gv = logits_gv.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        if self._bias is not None:
            self._bias.apply(logits_gv)
        if self._penalties is not None:
            self._penalties.apply(logits_gv)
        early = {row: ends for row, ends in self._ends.items() if len(self._rows[row].generated_ids) < self._rows[row].params.min_tokens}
        allowed = {row: self._allowed(form, early.pop(row, None)) for row, form in self._formed}
        if allowed:
            mask = torch.from_numpy(np.stack(list(allowed.values()))).to(logits_gv.device)
            logits_gv[self._formed_tensor] = logits_gv[self._formed_tensor].masked_fill(~mask, -torch.inf)
        places = [row * self._vocab_size + token_id for row, ends in early.items() for token_id in ends]
        if places:
            forbid(logits_gv, places)
        return logits_gv, allowed

    def _allowed(self, form: Constraint, ends: list[int] | None) -> NDArray[np.bool_]:
        """What a form allows, without ends that come too early, unless the form leaves nothing else."""
        allowed_v = form.allowed()[: self._vocab_size]
        if ends is not None:
            longer_v = allowed_v.copy()
            longer_v[ends] = False
            if longer_v.any():
                return longer_v
        return allowed_v


def most_likely(logits_nv: Tensor) -> list[int]:
    """The token of each row's highest logit, the lower id on a tie; ``NOT_FINITE`` where the highest is NaN or infinite."""
    if logits_nv.device.type == "cpu" and logits_nv.dtype == torch.float32:
        # NumPy finds a maximum several times faster than torch, and takes the first one, or the first NaN.
        array_nv = logits_nv.detach().numpy()
        token_n = array_nv.argmax(axis=1)
        if np.isfinite(array_nv[np.arange(len(token_n)), token_n]).all():
            return token_n.tolist()
    highest_n, token_n = logits_nv.max(dim=-1)
    return token_n.masked_fill(~highest_n.isfinite(), NOT_FINITE).tolist()


def _is_edited(row: SamplingRow) -> bool:
    params = row.params
    return bool(params.logit_bias) or params.min_tokens > 0 or row.constraint is not None or is_penalised(params)


def _is_not(left: object, right: object) -> bool:
    return left is not right
