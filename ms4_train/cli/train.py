"""``ms4 train``: run the training program that a file names.

Exercise it: ``ms4 train configs/train/tiny_full.yaml --dry-run``, or ``pytest tests/ms4_train/cli/test_train.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ms4_train.config import SftRun

EXAMPLES = """
Examples:

  ms4 train configs/train/tiny_full.yaml

  ms4 train configs/train/tiny_lora.yaml training.learning_rate=1e-4 adapter.r=32

  ms4 train run.yaml --dry-run                              # what would be trained, without training

  ms4 train run.yaml training.resume_from_checkpoint=never  # start again

  ms4 train run.yaml --nproc 8 parallel.expert_parallel_size=8   # eight processes on this machine

  torchrun --nproc-per-node 8 --no-python ms4 train run.yaml parallel.expert_parallel_size=8
"""

_Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes, such as training.learning_rate=1e-4.", show_default=False)
]


def train(
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="Run file (recipe: sft).", show_default=False)],
    overrides: _Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would be trained, and stop.")] = False,
    nproc: Annotated[
        int | None, typer.Option("--nproc", metavar="N", help="Start N processes on this machine, one per GPU.", show_default=False)
    ] = None,
) -> None:
    """Fine-tune a model, going on from its last checkpoint where there is one.

    Ctrl-C or SIGTERM finishes the step, saves, and ends with exit code 130 or 143; the same command goes on (unless
    training.resume_from_checkpoint says otherwise). A second Ctrl-C ends at once.
    Other exit codes: 2 an error that you can mend, 75 a full disk, 76 another process of the run died or hangs. All processes end with
    the same one.
    """
    from ms4_train.config import SftRun, load_run
    from ms4_train.errors import ConfigError

    config = load_run(file, overrides or [])
    if not isinstance(config, SftRun):
        raise ConfigError(f"recipe {config.recipe} does not train.", file=file, key="recipe", fix=f"run `ms4 eval run {file}`.")
    if nproc is not None:
        from ms4_train.cli.launch import launch, require_launchable

        require_launchable(nproc)
        if nproc > 1:
            _check_mesh(config, nproc)
            raise typer.Exit(launch(["train", str(file), *(overrides or []), *(["--dry-run"] if dry_run else [])], nproc))
    from ms4_recipes import sft

    sft.run(config, dry_run=dry_run)


def _check_mesh(config: SftRun, nproc: int) -> None:
    """Refuse now what every rank would refuse seconds later. The model's configuration loads torch, so it is read for advice only."""
    from ms4_train.config.mesh import check_mesh
    from ms4_train.errors import ParallelError

    try:
        check_mesh(config.parallel, nproc)
    except ParallelError:
        from ms4_train.weights import read_config

        check_mesh(config.parallel, nproc, read_config(config.model.path).n_routed_experts)
        raise
