"""The network's step in one call of the compiled kernels.

A row's result is the same to the bit whatever else is in the step, wherever its prompt is cut, and with any number of threads. Activations
are fp32 whatever the weights are stored as; latents are what the pools store, also within a step.
Exercise it: ``pytest tests/kernels/ms4_kernels/step``.

Shape suffixes: t rows (new tokens) of all sequences, b sequences, d hidden, v vocabulary, r wanted rows, n cache blocks, s tokens of a
block, m latent and rotary key.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ms4_kernels.native.library import library, readable
from ms4_kernels.step.requirements import against
from ms4_kernels.step.structures import CStep, NetworkDescription
from ms4_kernels.step.weights import NetworkWeights

__all__ = ["MOST_ROWS", "NetworkStep", "against"]

MOST_ROWS = 1024
"""Rows computed together: longer steps are cut, which bounds the scratch and changes no result."""

_FAULTS = {
    1: "lengths and starts do not describe the rows",
    2: "a sequence has fewer blocks than tokens",
    3: "a block lies outside the pools",
    4: "a wanted row is none of the step's",
}


class NetworkStep:
    """Steps of one network over one cache. Weights are read at every call, where they lie; their tensors must stay the same ones.

    Args:
        weights: of the network.
        pools: of each layer [n, s, m], one type among fp32, bf16 and float8_e4m3fn.
        block_size: s.

    Raises:
        ValueError: the compiled kernels do not serve these; :func:`against` says why.
    """

    def __init__(self, weights: NetworkWeights, pools: Sequence[Tensor], block_size: int) -> None:
        if reason := against(weights, pools):
            raise ValueError(f"the compiled step does not serve: {reason}")
        if any(pool.shape[1] != block_size for pool in pools):
            raise ValueError(f"pools of {pools[0].shape[1]} tokens in a block, not {block_size}")
        loaded = library()
        assert loaded is not None
        self._loaded = loaded
        self._network = NetworkDescription(weights, pools)
        self._pointer = ctypes.byref(self._network.c)
        self._arena = torch.empty(0, dtype=torch.uint8)
        self._arena_for = (0, 0)
        loaded.ms4_step_bytes.restype = ctypes.c_int64

    def run(
        self,
        embedding_td: Tensor,
        lengths: Sequence[int],
        starts: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        adapter_b: Sequence[int],
        wanted_r: Sequence[int],
    ) -> Tensor:
        """Compute new tokens, and write their latents to the pools.

        Args:
            embedding_td: fp32 [T, d], the rows of all sequences one after another.
            lengths: new tokens of each sequence.
            starts: tokens of each that the pools hold already.
            block_tables: blocks of each in order, enough for all its tokens.
            adapter_b: number of each sequence's adapter; -1: none.
            wanted_r: rows whose hidden states are wanted, ascending.

        Returns:
            fp32 [R, d], after the final norm.

        Raises:
            ValueError: the arguments do not fit together.
        """
        width = self._network.c.hidden
        if embedding_td.dtype != torch.float32 or embedding_td.ndim != 2 or embedding_td.shape[1] != width or not readable(embedding_td):
            raise ValueError(f"embeddings {embedding_td.dtype} {list(embedding_td.shape)}, expected plain fp32 [T, {width}] on the CPU")
        if not len(lengths) == len(starts) == len(block_tables) == len(adapter_b):
            raise ValueError("lengths, starts, block tables and adapters are not of equally many sequences")
        embedding_td = embedding_td.detach().contiguous()
        out_rd = torch.empty(len(wanted_r), width)
        if embedding_td.shape[0] <= MOST_ROWS:
            self._run(embedding_td, lengths, starts, block_tables, adapter_b, wanted_r, out_rd)
            return out_rd
        for first, stop, part in _cut(lengths, starts):
            wanted = [(place, row - first) for place, row in enumerate(wanted_r) if first <= row < stop]
            piece_rd = torch.empty(len(wanted), width)
            tables, adapters = [block_tables[b] for b, _, _ in part], [adapter_b[b] for b, _, _ in part]
            sizes, begins = [length for _, length, _ in part], [start for _, _, start in part]
            self._run(embedding_td[first:stop], sizes, begins, tables, adapters, [row for _, row in wanted], piece_rd)
            out_rd[[place for place, _ in wanted]] = piece_rd
        return out_rd

    def logits(self, hidden_rd: Tensor, adapter_r: Sequence[int]) -> Tensor:
        """Return logits, fp32 [R, V], of rows from :meth:`run`; ``adapter_r`` has the number of each row's adapter, -1: none."""
        width, (rows, threads) = self._network.c.hidden, (hidden_rd.shape[0], torch.get_num_threads())
        if hidden_rd.dtype != torch.float32 or hidden_rd.ndim != 2 or hidden_rd.shape[1] != width or not readable(hidden_rd):
            raise ValueError(f"hidden states {hidden_rd.dtype} {list(hidden_rd.shape)}, expected plain fp32 [R, {width}] on the CPU")
        if len(adapter_r) != rows:
            raise ValueError(f"{len(adapter_r)} adapters for {rows} rows")
        hidden_rd, out_rv = hidden_rd.detach().contiguous(), torch.empty(rows, self._network.c.vocabulary)
        adapters = array("i", adapter_r)
        if rows:
            arena = self._room(1, threads)
            addresses = (hidden_rd.data_ptr(), adapters.buffer_info()[0], out_rv.data_ptr(), arena)
            self._loaded.ms4_step_logits(self._pointer, ctypes.c_int32(rows), *map(ctypes.c_void_p, addresses), ctypes.c_int32(threads))
        return out_rv

    def _run(
        self,
        embedding_td: Tensor,
        lengths: Sequence[int],
        starts: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        adapter_b: Sequence[int],
        wanted_r: Sequence[int],
        out_rd: Tensor,
    ) -> None:
        blocks, firsts = array("i"), array("i", [0])
        for table in block_tables:
            blocks.extend(table)
            firsts.append(len(blocks))
        arrays = (array("i", lengths), array("i", starts), firsts, blocks, array("i", adapter_b), array("i", wanted_r))
        rows, threads = embedding_td.shape[0], torch.get_num_threads()
        arena = self._room(rows, threads)
        addresses = [part.buffer_info()[0] for part in arrays]
        step = CStep(rows, len(lengths), len(wanted_r), threads, embedding_td.data_ptr(), *addresses, out_rd.data_ptr(), arena)
        if fault := self._loaded.ms4_step_run(self._pointer, ctypes.byref(step)):
            raise ValueError(f"{_FAULTS[fault]}: lengths {list(lengths)}, starts {list(starts)}")

    def _room(self, rows: int, threads: int) -> int:
        """The address of scratch for so many rows, kept from call to call."""
        known_rows, known_threads = self._arena_for
        if rows > known_rows or threads > known_threads:
            rows, threads = max(rows, known_rows), max(threads, known_threads)
            needed = self._loaded.ms4_step_bytes(self._pointer, ctypes.c_int32(rows), ctypes.c_int32(threads))
            self._arena = torch.empty(needed, dtype=torch.uint8)
            self._arena_for = (rows, threads)
        return self._arena.data_ptr()


def _cut(lengths: Sequence[int], starts: Sequence[int]) -> Iterator[tuple[int, int, list[tuple[int, int, int]]]]:
    """Parts of at most ``MOST_ROWS`` rows: first row, row behind the last, and (sequence, length, start) of each piece in it."""
    part: list[tuple[int, int, int]] = []
    first = filled = 0
    for sequence, (length, start) in enumerate(zip(lengths, starts, strict=True)):
        done = 0
        while done < length:
            taken = min(length - done, MOST_ROWS - filled)
            part.append((sequence, taken, start + done))
            done, filled = done + taken, filled + taken
            if filled == MOST_ROWS:
                yield first, first + filled, part
                first, filled, part = first + filled, 0, []
    if part:
        yield first, first + filled, part
