"""Runs of two ranks, each started as on a machine of its own: another working folder, or other settings.

``python same_start_worker.py FOLDER`` prints a report of all cases. The ranks are forks of this process, which has imported everything.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from unittest import mock

import torch
from support.rank_forks import fork_ranks, import_all, side_by_side
from support.sft_files import sft_run, write_files, write_rows

from ms4_recipes import sft
from ms4_train.parallel import shared_folder
from ms4_train.training import same_start

RANKS = 2


def run(folder, name, *, of_rank_1=None, versions=None, checked=True, dry_run=False, **sections):
    """How two ranks end; each starts in its own folder, from which its rows are read.

    Args:
        folder: with the files.
        name: of the case, and of its output.
        of_rank_1: sections that differ there.
        versions: packages of rank 1 that differ.
        checked: False leaves the comparisons out, as a control.
        dry_run: as of ``sft.run``.
        sections: of both.
    """
    usual = {
        "output_dir": str(folder / f"{name} out"),
        "data": {"train": [{"path": "a.jsonl"}]},
        "training": {"max_steps": 1, "save_strategy": "steps"},
        "parallel": {"expert_parallel_size": 2, "zero_stage": 0, "timeout_seconds": 20},
    }
    found = same_start.versions()

    def work(rank):
        torch.set_num_threads(1)
        if not checked:
            sft.require_same_start = sft.require_same_inputs = lambda *_, **__: None
        os.chdir(folder / f"machine {rank}")
        given = {
            key: {**usual[key], **sections.get(key, {})} if isinstance(usual[key], dict) else sections.get(key, usual[key]) for key in usual
        }
        for key, section in (of_rank_1 or {}).items() if rank else ():
            given[key] = {**given[key], **section}
        mine = found | (versions or {}) if rank else found
        with mock.patch.object(same_start, "versions", side_effect=mine.copy), mock.patch.object(shared_folder, "PAUSES", (0.0, 0.2)):
            sft.run(sft_run(folder, **given), dry_run=dry_run)

    return fork_ranks(work, folder / name, ranks=RANKS, timeout=60).report()


def cases(folder):
    yield "equal", {}
    yield "rate", {"of_rank_1": {"training": {"learning_rate": 1e-9}}}
    yield "dry", {"of_rank_1": {"training": {"learning_rate": 1e-9}}, "dry_run": True}
    yield "dry and equal", {"dry_run": True}
    yield "layout", {"of_rank_1": {"parallel": {"expert_parallel_size": 1}}}
    yield "accumulation", {"of_rank_1": {"training": {"gradient_accumulation_steps": 2}}}
    yield "rows", {"data": {"train": [{"path": "b.jsonl"}]}}
    yield "unchecked", {"of_rank_1": {"training": {"learning_rate": 1e-9}}, "data": {"train": [{"path": "b.jsonl"}]}, "checked": False}
    yield "torch", {"versions": {"torch": "0.1"}}
    yield "output", {"output_dir": "out"}
    yield "unsaved", {"output_dir": "unsaved out", "training": {"save_strategy": "no"}}
    yield "disk", {"output_dir": str(folder / "a.jsonl" / "out")}


def main():
    folder = Path(sys.argv[1])
    import_all(with_deepspeed=False)
    write_files(folder, rows=24)
    for rank in range(RANKS):
        (folder / f"machine {rank}").mkdir()
        shutil.copy(folder / "a.jsonl", folder / f"machine {rank}")
        write_rows(folder / f"machine {rank}" / "b.jsonl", 24, seed=10 + rank)
    chosen = {name: lambda name=name, keys=keys: run(folder, name, **keys) for name, keys in cases(folder)}
    print(json.dumps(side_by_side(chosen, folder / "reports", most=2)))


if __name__ == "__main__":
    main()
