"""API keys: the right one opens, everything else is refused, and the ring does not hold the keys themselves."""

from __future__ import annotations

import pytest

from ms4_train.serving.failures import ApiError
from ms4_train.serving.keys import KeyRing

KEYS = ("first-key", "zweiter-schlüssel")


@pytest.mark.parametrize("header", [b"Bearer first-key", b"bearer  first-key ", "Bearer zweiter-schlüssel".encode()])
def test_a_right_key_opens(header: bytes) -> None:
    KeyRing(KEYS).check(header)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "missing_api_key"),
        (b"", "missing_api_key"),
        (b"Bearer", "missing_api_key"),
        (b"Basic first-key", "missing_api_key"),
        (b"first-key", "missing_api_key"),
        (b"Bearer first-keY", "invalid_api_key"),
        (b"Bearer first-key2", "invalid_api_key"),
        (b"Bearer \xff\xfe", "invalid_api_key"),
    ],
)
def test_everything_else_is_refused(header: bytes | None, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        KeyRing(KEYS).check(header)
    assert (caught.value.status, caught.value.error_code) == (401, code)
    assert "first" not in caught.value.message


def test_without_keys_nothing_is_asked() -> None:
    KeyRing(()).check(None)


def test_keys_are_kept_as_digests() -> None:
    assert "first" not in str(vars(KeyRing(KEYS)))
