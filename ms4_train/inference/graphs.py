"""Decode steps as CUDA graphs: recorded once for each size of batch, replayed with one launch where a step would take hundreds.

Batches are padded to a few sizes. A graph reads its inputs from the same memory each time, into which a step's tokens are copied first.
Rows of padding have position -1, attend to nothing and write nothing. What is recorded reads no value on the host.
Exercise it: ``pytest tests/ms4_train/inference/test_graphs.py``; on a GPU: ``test_graphs_gpu.py`` beside it.

Shape suffixes: b sequences, padded; j blocks of a sequence; d hidden.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ms4_train.inference.step import StepPiece

Compute = Callable[[], Tensor]
Recorder = Callable[[Compute], Compute]
"""Given a computation on memory that stays where it is, returns what computes the same again, into the same result."""
BATCH_SIZES = (1, 2, 4, *range(8, 257, 8))
_WARM_UPS = 2


class DecodeGraphs:
    """Recorded steps of one token per sequence, by size of the batch.

    Args:
        compute: from token ids [B], positions [B], negative for padding, and block tables [B, J] to hidden states [B, d].
        recorder: see ``Recorder``.
        device: of the inputs.
        table_width: J, the most blocks that a sequence can have.
    """

    def __init__(
        self, compute: Callable[[Tensor, Tensor, Tensor], Tensor], recorder: Recorder, device: torch.device, table_width: int
    ) -> None:
        self._compute = compute
        self._recorder = recorder
        self._replays: dict[int, Compute] = {}
        most = BATCH_SIZES[-1]
        self._token_b, self._position_b = (torch.zeros(most, dtype=torch.int64, device=device) for _ in range(2))
        self._table_bj = torch.zeros(most, table_width, dtype=torch.int32, device=device)

    def serves(self, pieces: Sequence[StepPiece]) -> bool:
        """Whether these are single tokens, of the model as it stands, that continue cached ones."""
        return 0 < len(pieces) <= BATCH_SIZES[-1] and all(
            piece.start > 0 and len(piece.token_ids) == 1 and piece.adapter is None and piece.images is None for piece in pieces
        )

    def run(self, pieces: Sequence[StepPiece]) -> Tensor:
        """Hidden states of the pieces' tokens, in order, and of padding behind them, [B, d]; overwritten by the next step.

        Raises:
            ValueError: a piece has more blocks than a sequence can have.
        """
        size = BATCH_SIZES[bisect_left(BATCH_SIZES, len(pieces))]
        self._fill(pieces, size)
        if size not in self._replays:
            inputs = self._token_b[:size], self._position_b[:size], self._table_bj[:size]
            self._replays[size] = self._recorder(lambda: self._compute(*inputs))
        return self._replays[size]()

    def clear(self) -> None:
        """Forget all: what the graphs read has moved or changed its meaning."""
        self._replays.clear()

    def _fill(self, pieces: Sequence[StepPiece], size: int) -> None:
        padding = [0] * (size - len(pieces))
        longest = max(len(piece.blocks) for piece in pieces)
        if longest > self._table_bj.shape[1]:
            raise ValueError(f"{longest} blocks of one sequence, at most {self._table_bj.shape[1]} are possible")
        tables = [[*piece.blocks, *[0] * (longest - len(piece.blocks))] for piece in pieces]
        self._token_b[:size].copy_(torch.tensor([piece.token_ids[0] for piece in pieces] + padding))
        self._position_b[:size].copy_(torch.tensor([piece.start for piece in pieces] + [-1 for _ in padding]))
        self._table_bj[: len(pieces), :longest].copy_(torch.tensor(tables, dtype=torch.int32))


def cuda_recorder(device: torch.device) -> Recorder:
    """Record as CUDA graphs; all of one recorder share their memory, for one runs at a time."""
    pool = torch.cuda.graph_pool_handle()

    def record(compute: Compute) -> Compute:
        with torch.cuda.device(device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # kernels are compiled and libraries make their workspaces, which a recording must not
                for _ in range(_WARM_UPS):
                    compute()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the device meanwhile: a server's, or one that trains.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                result = compute()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    return record
