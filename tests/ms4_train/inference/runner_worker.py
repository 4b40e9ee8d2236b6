"""One of two ranks that share the experts: runs its own sequences, or none, in step with the other, and says how far off they are."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from support.checkpoints import relative_error
from support.models import tiny_model
from support.steps import Feeder, paged_cache

from ms4_train.config.schema import ParallelSection
from ms4_train.inference.module_runner import ModuleRunner
from ms4_train.model import SequenceLayout
from ms4_train.parallel import init_mesh, shard_experts

LENGTHS = ({"a": 21, "b": 9}, {"c": 12})
CUTS = ((0, 5), (5, 6), (6, 12), (12, 21))
"""Of every sequence; rank 1 has nothing to compute in the last step, and then once more neither has."""


def main() -> None:
    """Write the largest relative error of this rank's hidden states, and how many experts it holds."""
    mesh = init_mesh(ParallelSection(expert_parallel_size=2))
    model, whole = tiny_model(), tiny_model()
    generator = torch.Generator().manual_seed(mesh.rank)
    ids = {name: torch.randint(0, 512, (length,), generator=generator).tolist() for name, length in LENGTHS[mesh.rank].items()}
    shard_experts(model, mesh)
    cache = paged_cache(model)
    runner, feeder = ModuleRunner(model, cache), Feeder(cache)
    runner.open()
    found = {name: [] for name in ids}
    for first, stop in CUTS:
        pieces = {name: feeder.piece(name, tokens[first:stop]) for name, tokens in ids.items() if first < len(tokens)}
        parts = runner.run(list(pieces.values())).split([len(piece.token_ids) for piece in pieces.values()])
        for name, part in zip(pieces, parts, strict=False):
            found[name].append(part)
    runner.run([])
    runner.close()
    with torch.no_grad():
        expected = {name: whole(torch.tensor(tokens), SequenceLayout.from_lengths([len(tokens)])) for name, tokens in ids.items()}
    error = max(float(relative_error(torch.cat(found[name]), expected[name])) for name in ids)
    report = {"error": error, "experts": model.model.layers[0].mlp.experts.num_local_experts}
    (Path(sys.argv[1]) / f"{mesh.rank}.json").write_text(json.dumps(report))
    mesh.close()


if __name__ == "__main__":
    main()
