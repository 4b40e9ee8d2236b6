"""Real runs on two gloo ranks in which one loss or one gradient of rank 1 is not a number. ``python -m support.bad_steps FOLDER STAGES``
reports.

Nothing is replaced but the one value: the third step's loss of rank 1 is multiplied by NaN, or its gradient is on the way back.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support.rank_forks import fork_ranks, import_all, side_by_side
from support.sft_files import sft_run, write_files

from ms4_recipes import sft
from ms4_train.errors import NotFiniteError
from ms4_train.parallel import progress
from ms4_train.training import loop
from ms4_train.training.bad_step import folder_of, read_bad_step

BAD_STEP = 3
BAD_MICRO_BATCH = 1


def poison(kind: str) -> None:
    """Make a value of rank 1 NaN, in the second micro batch of the third step."""
    own, seen = loop.next_token_loss, [0]

    def poisoned(head: Any, hidden_td: torch.Tensor, *rest: Any, **keys: Any) -> torch.Tensor:
        nll = own(head, hidden_td, *rest, **keys)
        seen[0] += 1
        if os.environ["RANK"] != "1" or progress.here().step != BAD_STEP or (seen[0] - 1) % 2 != BAD_MICRO_BATCH:
            return nll
        if kind == "loss":
            return nll * math.nan
        hidden_td.register_hook(lambda gradient: gradient * math.nan)
        return nll

    loop.next_token_loss = poisoned


def state_sum(engine: Any) -> str:
    """Of everything that a step changes on this rank: masters, moments and step counts."""
    total = hashlib.sha256()
    for piece in engine.export_state():
        total.update(f"{piece.name} {piece.start} {piece.step}".encode())
        for tensor in piece.tensors.values():
            total.update(tensor.cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def case(folder: Path, name: str, kind: str, zero_stage: int, dtype: str) -> dict[str, Any]:
    """How both ranks ended, what they said, and whether their state is that of before the step."""
    parallel = {"expert_parallel_size": 2, "zero_stage": zero_stage, "timeout_seconds": 30}
    training = {"max_steps": 5, "gradient_accumulation_steps": 2}
    config = sft_run(folder, f"{name} out", model={"dtype": dtype}, training=training, parallel=parallel)

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        poison(kind)
        made, sums = [], []
        make, train = sft.make_engine, sft.train_run
        sft.make_engine = lambda *positional, **keys: made.append(make(*positional, **keys)) or made[0]

        def before(place: progress.Place) -> None:
            if (place.phase, place.step) == ("optimizer", BAD_STEP):
                sums.append(state_sum(made[0]))

        def watched_train(*arguments: Any) -> Any:
            try:
                return train(*arguments)
            except NotFiniteError:
                (folder / f"{name}-{rank}.json").write_text(json.dumps([*sums, state_sum(made[0])]))
                raise

        sft.train_run = watched_train
        progress.listen(before)
        sft.run(config)

    report = fork_ranks(work, folder / name, ranks=2, timeout=120).report()
    report["sums"] = [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(2)]
    kept = [read_bad_step(folder_of(Path(config.output_dir), BAD_STEP), rank) for rank in range(2)]
    report["kept"] = [
        {"step": bad.step, "nll": [nll.hex() for nll in bad.nll_sums], "rows": [batch.row_ids for batch in bad.batches]} for bad in kept
    ]
    return report


def cases(folder: Path, stages: list[int]) -> dict[str, Callable[[], Any]]:
    """{name: case}"""
    made: dict[str, Callable[[], Any]] = {}
    for stage in stages:
        for dtype in ("float32", "bfloat16") if stage else ("float32",):
            for kind in ("loss", "gradient"):
                name = f"{kind} {stage} {dtype}"
                made[name] = lambda name=name, kind=kind, stage=stage, dtype=dtype: case(folder, name, kind, stage, dtype)
    return made


def main() -> None:
    folder, stages = Path(sys.argv[1]), [int(stage) for stage in sys.argv[2].split(",")]
    import_all(with_deepspeed=any(stages))
    write_files(folder)
    print(json.dumps(side_by_side(cases(folder, stages), folder / "reports", most=2)))


if __name__ == "__main__":
    main()
