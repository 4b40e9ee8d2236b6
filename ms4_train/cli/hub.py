"""``ms4 pull`` and ``ms4 push``: model folders from and to a Hugging Face hub, checked file by file.

Exercise it: ``ms4 pull --help`` and ``pytest tests/ms4_train/cli/test_hub.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

PULL_EXAMPLES = """
Examples:

  ms4 pull mistralai/Mistral-Small-4-119B-2603 Mistral-Small-4-119B

  ms4 pull mistralai/Mistral-Small-4-119B-2603 Mistral-Small-4-119B --layout hf --revision COMMIT

  ms4 pull OWNER/NAME OUT --dry-run    # what would be downloaded, in files and bytes

  ms4 pull OWNER/NAME OUT --check      # hash every file of a folder that is complete already
"""
PUSH_EXAMPLES = """
Examples:

  ms4 push runs/tiny/merged OWNER/NAME --dry-run    # what would change on the hub

  ms4 push runs/tiny/merged OWNER/NAME

  ms4 push runs/tiny/lora/adapter OWNER/NAME --public --message 'LoRA, rank 8'

  ms4 push OUT OWNER/NAME --others delete           # replaces another layout, in one commit
"""


class PullLayout(StrEnum):
    """Which copy of a model to download."""

    auto = "auto"
    native = "native"
    hf = "hf"
    all = "all"


class OtherFiles(StrEnum):
    """What happens to model files of a repository that a push does not replace."""

    refuse = "refuse"
    keep = "keep"
    delete = "delete"


_Repo = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the hub.", show_default=False)]


def pull(
    repo: _Repo,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make, or to complete.", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; a commit always gives the same files.")] = None,
    layout: Annotated[PullLayout, typer.Option(help="Which copy: native where there is one (auto), native, hf, or all.")] = PullLayout.auto,
    check: Annotated[bool, typer.Option("--check", help="Hash every file of a folder that is complete already.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be downloaded, and stop.")] = False,
) -> None:
    """Download a model from the Hugging Face hub, at one commit, and check every file's size and sum.

    The same command goes on after an interruption. SHA256SUMS is written when everything is there. Pickles and programs are never
    downloaded. A private or gated repository needs `hf auth login` or HF_TOKEN.
    """
    from ms4_train.weights.hub import pull as pull_model

    with _hashing_bar() as (say, progress):
        pull_model(repo, out, revision=revision, layout=layout.value, dry_run=dry_run, check=check, say=say, progress=progress)


def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a model or an adapter.", show_default=False)],
    repo: _Repo,
    branch: Annotated[str, typer.Option(help="Branch to change; made from main if it is not there.")] = "main",
    public: Annotated[bool, typer.Option("--public", help="Let everybody read a repository that is made now; default: private.")] = False,
    message: Annotated[str | None, typer.Option(help="First line of the commit.", show_default=False)] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of changing main.")] = False,
    others: Annotated[
        OtherFiles, typer.Option(help="Model files there that FOLDER does not have: refuse, keep, or delete them.")
    ] = OtherFiles.refuse,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and stop.")] = False,
) -> None:
    """Publish a model or adapter folder on the Hugging Face hub, in one commit, and compare what the hub then holds.

    Needs `hf auth login` or HF_TOKEN with the right to write. Pickles are refused; hidden files, programs and folders stay here.
    """
    from ms4_train.weights.hub import push as push_model

    with _hashing_bar() as (say, progress):
        push_model(
            folder,
            repo,
            branch=branch,
            private=not public,
            message=message,
            create_pr=create_pr,
            others=others.value,
            dry_run=dry_run,
            say=say,
            progress=progress,
        )


@contextlib.contextmanager
def _hashing_bar() -> Iterator[tuple[Callable[[str], None], Callable[[int], None]]]:
    """A way to print a line, and a counter of hashed bytes on a terminal, which goes when the next line is printed."""
    import sys
    import threading

    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("hashing"), DownloadColumn(binary_units=False), TransferSpeedColumn())
    bar = Progress(*columns, console=Console(file=sys.stderr), transient=True)
    task = bar.add_task("hashing", total=None)
    lock = threading.Lock()

    def stop() -> None:
        if bar.live.is_started:  # stopping prints an empty line otherwise
            bar.stop()

    def say(line: str) -> None:
        # huggingface_hub draws bars of its own after the line; two live displays would overwrite each other.
        with lock:
            stop()
            typer.echo(line)

    def advance(count: int) -> None:
        with lock:
            if not bar.live.is_started and bar.console.is_terminal:
                bar.start()
        bar.advance(task, count)

    try:
        yield say, advance
    finally:
        stop()
