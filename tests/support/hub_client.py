"""huggingface_hub set up for the hub of ``hub_server``, and what a repository of this model looks like."""

from __future__ import annotations

import contextlib
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.hub_server import Hub, running_hub


@contextlib.contextmanager
def hub_client(monkeypatch: Any, home: Path) -> Iterator[Hub]:
    """``running_hub`` with huggingface_hub set up for it: online, without Xet, no token, and its cache in ``home``."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    with running_hub() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        close_session()  # a client of another test may hold connections to a hub that is gone
        yield hub
        close_session()


def safetensors_bytes(count: int, seed: int = 0) -> bytes:
    """A valid file with one tensor of ``count`` random bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}).encode()
    return struct.pack("<Q", len(header)) + header + random.Random(seed).randbytes(count)


def both_copies() -> dict[str, bytes]:
    """A repository like the public one: a native and a Hugging Face copy, companions, and what nobody should download."""
    return {
        ".gitattributes": b"*.safetensors filter=lfs\n",
        "README.md": b"# A model\n",
        "SYSTEM_PROMPT.txt": "Réponds.\n".encode(),
        "params.json": b'{"dim": 4}',
        "consolidated-00001-of-00002.safetensors": safetensors_bytes(300_000, 1),
        "consolidated-00002-of-00002.safetensors": safetensors_bytes(200_000, 2),
        "consolidated.safetensors.index.json": b'{"weight_map": {}}',
        "tekken.json": b"{}" * 2000,
        "config.json": b'{"model_type": "mistral3"}',
        "generation_config.json": b"{}",
        "model.safetensors": safetensors_bytes(100_000, 3),
        "tokenizer.json": b"[]" * 2000,
        "chat_template.jinja": b"{{ messages }}",
        "modeling_evil.py": b"import os\n",
        "pytorch_model.bin": b"\x80\x04pickle" * 300,
        "images/image.png": b"png",
    }
