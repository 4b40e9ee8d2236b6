"""Messages between the rank that drives a generation and the ranks that follow it: an order to all, a part for each, a reply from each.

A short order is one broadcast, and short replies are one gather; what does not fit a frame follows it. All go over a gloo group of their
own, whose ranks wait for each other for days: rank 0 may have other work between two orders. Whether that gets on is for it to say
(``progress``), and for the watch over the ranks to see.
Exercise it: ``pytest tests/ms4_train/inference/test_rank_link.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ms4_train.errors import RankLostError
from ms4_train.parallel import Mesh, watch

ORDER_FRAME = 512
REPLY_FRAME = 4096
_LENGTH_BYTES = 8
_LOOK = "see what the other ranks printed."
_PATIENCE = timedelta(days=30)


class RankLink:
    """One end of the messages; made on all ranks of a mesh at once.

    Args:
        mesh: of several ranks.

    Attributes:
        is_broken: a message was cut short, or a rank is gone: nothing more can be said.
    """

    def __init__(self, mesh: Mesh) -> None:
        assert mesh.world_size > 1
        self.mesh = mesh
        self.is_broken = False
        group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        assert isinstance(group, dist.ProcessGroup)
        self._group = group

    def order(self, order: Mapping[str, Any], parts: Mapping[int, bytes]) -> None:
        """Send an order (JSON values) to all other ranks, and to some of them a part of their own. Only rank 0 does.

        Raises:
            RankLostError: a rank is gone.
        """
        sizes = {str(rank): len(part) for rank, part in parts.items() if rank != 0 and part}
        data = json.dumps([order, sizes]).encode()
        with self._unbroken():
            dist.broadcast(_frame(data, ORDER_FRAME), 0, group=self._group)
            if rest := data[ORDER_FRAME - _LENGTH_BYTES :]:
                dist.broadcast(_tensor(rest), 0, group=self._group)
            for rank in sizes:
                dist.send(_tensor(parts[int(rank)]), int(rank), group=self._group)

    def next_order(self) -> tuple[dict[str, Any], bytes]:
        """The order that comes next, and this rank's part; waits for it. Only the others do.

        Raises:
            RankLostError: rank 0 is gone.
        """
        frame = torch.empty(ORDER_FRAME, dtype=torch.uint8)
        with self._unbroken():
            dist.broadcast(frame, 0, group=self._group)
            data, missing = _opened(frame)
            if missing:
                rest = torch.empty(missing, dtype=torch.uint8)
                dist.broadcast(rest, 0, group=self._group)
                data += _bytes(rest)
            order, sizes = json.loads(data)
            part = b""
            if size := sizes.get(str(self.mesh.rank), 0):
                received = torch.empty(size, dtype=torch.uint8)
                dist.recv(received, 0, group=self._group)
                part = _bytes(received)
        return order, part

    def reply(self, data: bytes) -> None:
        """Answer an order. Only ranks other than 0 do.

        Raises:
            RankLostError: rank 0 is gone.
        """
        with self._unbroken():
            dist.gather(_frame(data, REPLY_FRAME), None, 0, group=self._group)
            if rest := data[REPLY_FRAME - _LENGTH_BYTES :]:
                dist.send(_tensor(rest), 0, group=self._group)

    def replies(self) -> list[bytes]:
        """What ranks 1, 2, ... answer, in this order. Only rank 0 asks.

        Raises:
            RankLostError: a rank is gone.
        """
        frames = [torch.empty(REPLY_FRAME, dtype=torch.uint8) for _ in range(self.mesh.world_size)]
        found: list[bytes] = []
        with self._unbroken():
            dist.gather(torch.zeros(REPLY_FRAME, dtype=torch.uint8), frames, 0, group=self._group)
            for rank in range(1, self.mesh.world_size):
                data, missing = _opened(frames[rank])
                if missing:
                    rest = torch.empty(missing, dtype=torch.uint8)
                    dist.recv(rest, rank, group=self._group)
                    data += _bytes(rest)
                found.append(data)
        return found

    @contextmanager
    def _unbroken(self) -> Iterator[None]:
        if self.is_broken:
            raise RankLostError("the ranks that generate together have lost each other.", fix="start the run anew.")
        try:
            yield
        except BaseException as error:
            self.is_broken = True
            if isinstance(error, RuntimeError):
                raise lost(error) or RankLostError(f"the ranks cannot reach each other ({error}).", fix=_LOOK) from error
            raise


def lost(error: Exception) -> RankLostError | None:
    """Which rank is gone, or that one is, where that is why a collective failed; waits a little for what the watch over the ranks knows."""
    known = watch.reason()
    if known is None and (isinstance(error, dist.DistBackendError) or "gloo" in str(error)):
        text = str(error).partition(". This is typically")[0]
        return RankLostError(f"a rank that generates with this one has ended ({text}).", fix=_LOOK)
    return known


def _frame(data: bytes, size: int) -> Tensor:
    """The length of the data and as much of it as a frame holds."""
    frame = torch.zeros(size, dtype=torch.uint8)
    start = _tensor(len(data).to_bytes(_LENGTH_BYTES, "little") + data[: size - _LENGTH_BYTES])
    frame[: len(start)] = start
    return frame


def _opened(frame: Tensor) -> tuple[bytes, int]:
    """What a frame holds, and how many bytes follow it."""
    held = _bytes(frame)
    length, room = int.from_bytes(held[:_LENGTH_BYTES], "little"), len(held) - _LENGTH_BYTES
    return held[_LENGTH_BYTES : _LENGTH_BYTES + min(length, room)], max(0, length - room)


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()
