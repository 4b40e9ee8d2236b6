"""The state of every random number generator of this process, as JSON: Python, numpy, torch, and the process's GPU.

Exercise it: ``pytest tests/ms4_train/checkpoint/test_random_state.py``.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from ms4_train.errors import CheckpointError

SEED_BOUND = 2**32


def seed_everything(seed: int, rank: int) -> None:
    """Seed all generators. Ranks differ, so that they do not draw the same dropout masks."""
    mixed = (seed * 1_000_003 + rank) % SEED_BOUND
    random.seed(mixed)
    np.random.seed(mixed)  # noqa: NPY002 - libraries below us still draw from the global generator
    torch.manual_seed(mixed)


def capture_random_state() -> dict[str, Any]:
    """What ``restore_random_state`` takes; plain JSON values."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 - as above
    state: dict[str, Any] = {
        "python": {"version": version, "internal": list(internal), "gauss": gauss},
        "numpy": {
            "name": name,
            "keys": np.asarray(keys, dtype="<u4").tobytes().hex(),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": _to_hex(torch.get_rng_state()),
    }
    if torch.cuda.is_available():
        state["cuda"] = _to_hex(torch.cuda.get_rng_state())
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Set all generators to a captured state. A GPU state is ignored on a machine without one.

    Raises:
        CheckpointError: the state is malformed.
    """
    try:
        python, numpy_state = state["python"], state["numpy"]
        random.setstate((python["version"], tuple(python["internal"]), python["gauss"]))
        keys = np.frombuffer(bytes.fromhex(numpy_state["keys"]), dtype="<u4")
        np.random.set_state(  # noqa: NPY002 - as above
            (numpy_state["name"], keys, numpy_state["position"], numpy_state["has_gauss"], numpy_state["cached"])
        )
        torch.set_rng_state(_from_hex(state["torch"]))
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(_from_hex(state["cuda"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the random state cannot be restored ({error}).", fix="resume from another checkpoint.") from error


def _to_hex(state: torch.Tensor) -> str:
    return state.numpy().tobytes().hex()


def _from_hex(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
