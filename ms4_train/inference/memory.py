"""How large the latent cache of an engine becomes: what was asked for, what the requests can need, or a share of the free memory.

Exercise it: ``pytest tests/ms4_train/inference/test_memory.py``.
"""

from __future__ import annotations

import logging
import os

import torch

from ms4_train.errors import EngineError

_LOG = logging.getLogger("ms4_train")
_CPU_SHARE = 0.25
_GPU_SHARE = 0.85


def free_bytes(device: torch.device) -> int:
    """Memory that a cache may take on a device: the larger part of a GPU's free memory, a quarter of what a machine has.

    Ranks on one machine share that quarter (``LOCAL_WORLD_SIZE``, as launchers set it); a GPU belongs to one rank.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(_GPU_SHARE * free)
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    sharing = int(ranks) if ranks.isdigit() and int(ranks) else 1
    return int(_CPU_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) // sharing


def cache_blocks(
    *, asked_tokens: int | None, needed_tokens: int, longest: int, block_size: int, bytes_per_token: int, device: torch.device
) -> int:
    """Number of blocks of a cache.

    Args:
        asked_tokens: the user's bound in tokens, if any.
        needed_tokens: more are of no use.
        longest: tokens of the longest sequence; it must fit, with one block more for a copy.
        block_size: tokens of a block.
        bytes_per_token: of all layers.
        device: the cache's.

    Raises:
        EngineError: the longest sequence does not fit what was asked for, or the free memory.
    """
    least = -(-longest // block_size) + 1
    wanted = max(least, -(-needed_tokens // block_size) + 1)
    if asked_tokens is not None:
        bound, why = asked_tokens // block_size, f"cache_tokens {asked_tokens}"
    else:
        free = free_bytes(device)
        bound, why = free // (bytes_per_token * block_size), f"the {free >> 20} MB that a cache may take on {device}"
    if bound < least:
        raise EngineError(
            f"a sequence of {longest} tokens takes {least} cache blocks of {block_size} tokens, more than {why} holds ({bound}).",
            key="cache_tokens",
            fix="lower max_context, raise cache_tokens, or store the cache in fewer bits (cache_dtype).",
        )
    if bound < wanted:
        _LOG.info("latent cache: %d tokens of %d that the batch could use (%s)", bound * block_size, needed_tokens, why)
    return min(bound, wanted)
