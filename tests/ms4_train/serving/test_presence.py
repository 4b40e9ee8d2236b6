"""A client that goes is noticed inside the block, and only there."""

from __future__ import annotations

import asyncio
from typing import Any

from ms4_train.serving.presence import watching


def test_going_is_noticed_at_once() -> None:
    async def scene() -> list[str]:
        gone: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        noticed: list[str] = []
        async with watching(gone.get, lambda: noticed.append("gone")):
            await gone.put({"type": "http.request", "body": b""})
            await asyncio.sleep(0.01)
            assert not noticed
            await gone.put({"type": "http.disconnect"})
            await asyncio.sleep(0.01)
        return noticed

    assert asyncio.run(scene()) == ["gone"]


def test_after_the_block_nobody_watches() -> None:
    async def scene() -> tuple[list[str], int]:
        gone: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        noticed: list[str] = []
        async with watching(gone.get, lambda: noticed.append("gone")):
            pass
        await gone.put({"type": "http.disconnect"})
        await asyncio.sleep(0.01)
        return noticed, len(asyncio.all_tasks())

    assert asyncio.run(scene()) == ([], 1)
