"""``ms4``: joins the groups of commands and turns every error that a user can cause into one line and exit code 2.

Exercise it: ``ms4 --help`` and ``pytest tests/ms4_train/cli/test_main.py``.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated, NoReturn

import typer

from ms4_train.cli import (
    adapter,
    chat,
    checkpoint,
    config,
    data,
    doctor,
    evaluate,
    generate,
    hub,
    leaderboard,
    model,
    serve,
    train,
    weights,
)
from ms4_train.errors import DiskFullError, MS4Error, RankLostError
from ms4_train.storage import is_disk_full

_EPILOG = """Examples:

ms4 doctor

ms4 train configs/train/tiny_full.yaml

ms4 eval run configs/eval/arithmetic.yaml

Every command takes --help and shows examples."""

app = typer.Typer(
    name="ms4",
    help="Fine-tune and evaluate Mistral Small 4.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(model.app, name="model", help="Create models, merge adapters, derive tokenizers.", rich_help_panel="Prepare")
app.add_typer(adapter.app, name="adapter", help="Inspect adapters, write them for PEFT or vLLM, show presets.", rich_help_panel="Prepare")
app.add_typer(weights.app, name="weights", help="Inspect, convert, compare and verify checkpoints.", rich_help_panel="Prepare")
app.command("pull", epilog=hub.PULL_EXAMPLES, rich_help_panel="Prepare")(hub.pull)
app.command("push", epilog=hub.PUSH_EXAMPLES, rich_help_panel="Use a model")(hub.push)
app.add_typer(data.app, name="data", help="Look at training rows and check them.", rich_help_panel="Prepare")
app.add_typer(config.app, name="config", help="Check, show and describe run files.", rich_help_panel="Prepare")
app.command("doctor", epilog=doctor.EXAMPLES, rich_help_panel="Prepare")(doctor.doctor)
app.command("train", epilog=train.EXAMPLES, rich_help_panel="Train and evaluate")(train.train)
app.command("serve", epilog=serve.EXAMPLES, rich_help_panel="Use a model")(serve.serve)
app.command("generate", epilog=generate.EXAMPLES, rich_help_panel="Use a model")(generate.generate)
app.command("chat", epilog=chat.EXAMPLES, rich_help_panel="Use a model")(chat.chat)
app.add_typer(checkpoint.app, name="checkpoint", help="List, verify, prune and export run state.", rich_help_panel="Train and evaluate")
app.add_typer(
    leaderboard.app, name="leaderboard", help="Results side by side, as a site or on the terminal.", rich_help_panel="Train and evaluate"
)
_EVAL_HELP = "Evaluate in both reasoning modes; reports and comparisons."
app.add_typer(evaluate.app, name="eval", help=_EVAL_HELP, rich_help_panel="Train and evaluate")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"ms4-train {version('ms4-train')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """Fine-tune and evaluate Mistral Small 4."""


def _let_threads_sleep() -> None:
    """Let OpenMP's idle threads wait for some 0.1 ms, not for some 10, before they sleep; it reads this when torch is loaded.

    On a machine with other work the thread that waits holds the core that the other one needs: generation is several times slower then.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Exit codes: 0 done; 2 an error that the user can mend, printed as one line (``error: ...``) on stderr; 75 a full disk; 76 another rank
    of the run was lost; 128 and a signal's number where one ended the program; a traceback means a defect of ours. A reader that went away
    (``ms4 ... | head``) ends the program without a message.

    Args:
        arguments: without the program's name; default: those of the process.
    """
    _mark_warnings()
    _let_threads_sleep()
    try:
        app(args=arguments, prog_name="ms4")
        sys.exit(0)
    except RankLostError as error:
        _fail(str(error), error.exit_code, at_once=True)
    except MS4Error as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted.", 130)
    except BrokenPipeError:
        _leave_quietly()
    except Exception as error:
        if not is_disk_full(error):
            raise
        file = getattr(error, "filename", None)
        place = f"{file}: " if file else ""
        _fail(f"{place}the disk is full ({error}). Fix: free space or choose another folder.", DiskFullError.exit_code)


def _mark_warnings() -> None:
    """Warnings (a damaged checkpoint, a changed key) go to stderr as ``warning: ...``, so that they stand out among progress lines."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(logging.Formatter("warning: %(message)s"))


def _fail(message: str, code: int, *, at_once: bool = False) -> NoReturn:
    try:
        sys.stdout.flush()
    except OSError:
        _discard_stdout()
    print(f"error: {message}", file=sys.stderr, flush=True)
    if at_once:
        os._exit(code)  # taking down a process group whose other ranks are gone may wait for them
    sys.exit(code)


def _leave_quietly() -> NoReturn:
    _discard_stdout()
    sys.exit(1)


def _discard_stdout() -> None:
    # Python flushes stdout once more at exit; pointing it at nothing keeps that flush from complaining about a closed pipe or a full disk.
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
