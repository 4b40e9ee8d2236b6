"""Identities: equal for equal content, different for any difference, the same on every machine."""

import hashlib

import pytest

from ms4_evals.identity import content_hash, file_hash, sample_seed


def test_the_hash_is_of_the_canonical_json():
    assert content_hash({"b": [1, "é"], "a": None}) == hashlib.sha256(b'{"a":null,"b":[1,"\\u00e9"]}').hexdigest()
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert content_hash(["a", "b"]) != content_hash(["ab"])


def test_values_without_a_canonical_form_are_refused():
    with pytest.raises(ValueError, match="JSON"):
        content_hash(float("nan"))


def test_file_hash(tmp_path):
    (tmp_path / "f").write_bytes(b"x" * 3_000_000)
    assert file_hash(tmp_path / "f") == hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_sample_seeds_differ_in_every_argument_and_fit_63_bits():
    seeds = [
        sample_seed(seed, name, index, mode) for seed in (0, 1) for name in ("a", "b") for index in range(50) for mode in ("none", "high")
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_sample_seeds_never_change():
    """A store made today must go on tomorrow: this number is part of its format."""
    assert sample_seed(0, "aime_2025/01", 3, "high") == int(hashlib.sha256(b'[0,"aime_2025/01",3,"high"]').hexdigest()[:16], 16) >> 1
