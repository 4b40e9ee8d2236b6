"""Who holds which block of the latent cache, and which blocks already hold the beginning of a prompt.

A full block is named by a hash of everything its latents depend on: its tokens, and the name of the block before it. A block that nobody
holds any more keeps its content, and is found by its name until the room is needed; the one that has been free for longest goes first.
Exercise it: ``pytest tests/ms4_train/inference/test_blocks.py``.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

BlockName = bytes
_NAME_BYTES = 24


def first_name(adapter: str) -> BlockName:
    """What the first block of a sequence follows: the adapter it is computed with, by a name that no other weights share."""
    return hashlib.blake2b(adapter.encode(), digest_size=_NAME_BYTES).digest()


def block_name(before: BlockName, token_ids: Sequence[int], images: Sequence[bytes] = ()) -> BlockName:
    """The name of a full block.

    Args:
        before: name of the block before it.
        token_ids: of the block.
        images: digests of the images whose first token lies in the block, in order.
    """
    digest = hashlib.blake2b(before, digest_size=_NAME_BYTES)
    digest.update(array("q", token_ids).tobytes())
    for image in images:
        digest.update(image)
    return digest.digest()


class BlockPool:
    """Counts holders of blocks, and finds full blocks by name.

    Args:
        num_blocks: of the cache.
        caches: whether blocks can be found by name.
    """

    def __init__(self, num_blocks: int, *, caches: bool = True) -> None:
        self.num_blocks = num_blocks
        self.caches = caches
        self._holders = [0] * num_blocks
        self._names: dict[int, BlockName] = {}
        self._by_name: dict[BlockName, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict((block, None) for block in range(num_blocks))
        self._unwritten = set(range(num_blocks))
        self._num_cached = 0

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, named ones included."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks that somebody holds."""
        return self.num_blocks - len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that nobody holds but that can be found by name."""
        return self._num_cached

    def take(self, fresh: list[int]) -> int:
        """Hold a block whose content does not matter; the oldest free one. A block that was never written joins ``fresh``."""
        block, _ = self._free.popitem(last=False)
        self._forget(block)
        if block in self._unwritten:
            self._unwritten.remove(block)
            fresh.append(block)
        self._holders[block] = 1
        return block

    def share(self, block: int) -> None:
        """Hold a block that somebody holds, or that was found by name."""
        if not self._holders[block]:
            del self._free[block]
            self._num_cached -= block in self._names
        self._holders[block] += 1

    def is_shared(self, block: int) -> bool:
        """Whether more than one holds it, so that it must be copied before it is written."""
        return self._holders[block] > 1

    def give_back(self, blocks: Sequence[int]) -> None:
        """Hold these blocks no longer; the last of a sequence goes first when room is needed, because the others are useful without it."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            assert self._holders[block] >= 0, f"block {block} is given back more often than it was taken"
            if not self._holders[block]:
                self._free[block] = None
                if block in self._names:
                    self._num_cached += 1
                else:
                    self._free.move_to_end(block, last=False)

    def name(self, block: int, name: BlockName) -> None:
        """Let a full block be found; the first of several with one name stays the one that is found."""
        if self.caches and name not in self._by_name:
            self._by_name[name] = block
            self._names[block] = name
            self._num_cached += not self._holders[block]

    def find(self, names: Sequence[BlockName]) -> list[int]:
        """The blocks of the longest run of names, from the first, that are there. They are not held yet."""
        found: list[int] = []
        for name in names:
            block = self._by_name.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def forget_names(self) -> None:
        """Nothing can be found any more: the weights have changed."""
        for block in list(self._names):
            self._forget(block)

    def _forget(self, block: int) -> None:
        name = self._names.pop(block, None)
        if name is not None:
            del self._by_name[name]
            self._num_cached -= not self._holders[block]
