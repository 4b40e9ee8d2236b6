"""Names of things by their content: one canonical JSON form, hashed.

Two scores may stand in one column only if everything that shapes them is equal; these hashes decide it.
Exercise it: ``pytest tests/evals/ms4_evals/test_identity.py``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def content_hash(value: object) -> str:
    """SHA-256 in hexadecimal of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 in hexadecimal of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sample_seed(run_seed: int, problem_id: str, sample_index: int, mode: str) -> int:
    """The seed of one sample, in [0, 2**63): the same wherever, whenever and beside whatever it is computed."""
    return int(content_hash([run_seed, problem_id, sample_index, mode])[:16], 16) >> 1
