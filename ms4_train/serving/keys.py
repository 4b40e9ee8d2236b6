"""Who may use the server: API keys, compared without telling by the time it takes how much of a guess was right.

Exercise it: ``pytest tests/ms4_train/serving/test_keys.py``.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from ms4_train.serving.failures import ApiError


class KeyRing:
    """The keys of a server; it keeps their SHA-256 digests only.

    Args:
        keys: any of them opens; none: nothing is asked for.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def check(self, authorization: bytes | None) -> None:
        """Check the ``Authorization`` header of a request.

        Raises:
            ApiError: 401.
        """
        if not self._digests:
            return
        scheme, _, key = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer" or not key.strip():
            raise ApiError(401, "No API key. Send the header Authorization: Bearer KEY.", code="missing_api_key")
        digest = hashlib.sha256(key.strip()).digest()
        # Every key is compared, whichever is the right one.
        if not sum(hmac.compare_digest(digest, known) for known in self._digests):
            raise ApiError(401, "Wrong API key.", code="invalid_api_key")
