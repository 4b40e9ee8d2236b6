"""The engine's checks on ranks: adapters made, ranks started, reports read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.adapter_rows import WIDE, make_folder
from support.distributed import TESTS, run_ranks
from support.models import tiny_config, tiny_model
from support.tokenizers import tiny_tokenizer


def engine_model():
    """All weights of the model that the ranks share."""
    return tiny_model(tiny_config(vocab_size=tiny_tokenizer().vocab_size, n_routed_experts=16, num_experts_per_tok=4))


def generate_on_ranks(folder: Path, ranks: int, size: int, *names: str, check: bool = True) -> dict[str, Any]:
    """What rank 0 found in checks of ``mesh_worker.py``; all ranks must have got the same result. With ``check`` off: by rank."""
    make_folder(folder / "adapters" / "wide", WIDE, 7, make=engine_model)
    run_ranks(TESTS / "ms4_train" / "inference" / "mesh_worker.py", str(folder), str(size), *names, ranks=ranks, timeout=300, check=check)
    paths = [folder / f"{rank}.json" for rank in range(ranks)]
    found = {str(rank): json.loads(path.read_text()) for rank, path in enumerate(paths) if path.exists()}
    if not check:
        return found
    assert all(other == found["0"] for other in found.values())
    return found["0"]
