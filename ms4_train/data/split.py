"""Which rows are held out for validation, decided by what a row says, never by where it stands.

The hash covers the user's turns and the row's images only. So the split stays the same when rows are added, reordered or answered anew,
and two answers to one question (one per reasoning mode, say) never end up on two sides.

Exercise it: ``pytest tests/ms4_train/data/test_split.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ms4_train.chat import ChatRow


def is_held_out(row: ChatRow, fraction: float, image_digests: Sequence[str] = ()) -> bool:
    """Whether ``row`` belongs to the validation share ``fraction`` (0 to 1).

    Args:
        row: a checked row.
        fraction: of all rows.
        image_digests: identities of its images; without them all rows that ask the same about other images would end up on one side.
    """
    if fraction <= 0:
        return False
    digest = hashlib.blake2b(digest_size=8)
    for message in row.messages:
        if message.role == "user":
            digest.update(message.text.encode("utf-8", "surrogatepass"))
            # Ends a turn, so that moving text from one turn to the next gives another hash.
            digest.update(b"\xff")
    for image in image_digests:
        digest.update(image.encode())
    return int.from_bytes(digest.digest(), "big") < fraction * 2**64
