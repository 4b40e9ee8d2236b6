"""``ms4 generate --nproc N``: N processes share out the experts and compute each step together; rank 0 asks and prints.

Exercise it: ``pytest tests/ms4_train/cli/test_generate_ranks.py``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ms4_train.cli.model_options import Dtype, load_network, open_model
from ms4_train.errors import ParallelError

if TYPE_CHECKING:
    from ms4_train.chat import ChatTokenizer
    from ms4_train.inference import GenerationRequest
    from ms4_train.inference.calls import StepEngine

TIMEOUT_SECONDS = 1800
"""A rank that gets no further for so long counts as hung."""
Ask = Callable[["ChatTokenizer", int], "list[GenerationRequest]"]
Answer = Callable[["StepEngine", "ChatTokenizer", "list[GenerationRequest]"], None]


def is_rank() -> bool:
    """Whether this process is one of several that a launcher started."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def launched(model: Path, nproc: int) -> bool:
    """Start this very command as ``nproc`` processes and wait for them; False where one is enough, which this process is.

    Raises:
        ParallelError: the number does not fit, or this process is already one of several.
        typer.Exit: they ended with an error.
    """
    from ms4_train.cli.launch import launch, require_launchable

    require_launchable(nproc)
    if nproc == 1:
        return False
    check_processes(model, nproc)
    code = launch(without_nproc(sys.argv[1:]), nproc)
    if code:
        raise typer.Exit(code)
    return True


def without_nproc(arguments: list[str]) -> list[str]:
    """A command line as the processes get it."""
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            return [*kept, argument, *rest]
        if argument == "--nproc":
            next(rest, None)
        elif not argument.startswith("--nproc="):
            kept.append(argument)
    return kept


def check_processes(model: Path, processes: int) -> None:
    """Refuse a number of processes that the experts cannot be divided over.

    Raises:
        ParallelError: names numbers that fit.
        MS4Error: the model's configuration cannot be read.
    """
    from ms4_train.config.mesh import expert_parallel_sizes, nearest
    from ms4_train.weights import read_config

    experts = read_config(model).n_routed_experts
    if processes > 1 and experts % processes:
        offered = " or ".join(map(str, nearest(processes, expert_parallel_sizes(experts, experts))))
        raise ParallelError(
            f"{experts} experts of a layer cannot be divided over {processes} processes.", key="--nproc", fix=f"use {offered}."
        )


def generate_on_ranks(
    model: Path,
    adapter: Path | None,
    tokenizer: Path | None,
    dtype: Dtype,
    *,
    keep_quantised: bool,
    max_batch_size: int,
    ask: Ask,
    answer: Answer,
) -> None:
    """What every rank does.

    Args:
        model, adapter, tokenizer, dtype, keep_quantised: as of ``open_model`` and ``load_network``.
        max_batch_size: most answers that a rank computes at once.
        ask: makes the requests, with the tokenizer and the model's limit in tokens; on rank 0 only, before weights are read.
        answer: gets the engine, the tokenizer and the requests; on rank 0 only.

    Raises:
        MS4Error: on all ranks, whichever it happened on.
    """
    from ms4_train.config.schema import ParallelSection
    from ms4_train.inference.mesh_engine import EngineRanks
    from ms4_train.parallel import init_mesh
    from ms4_train.parallel.alike import require_alike
    from ms4_train.parallel.together import everyone, main_only
    from ms4_train.parallel.watch import watched
    from ms4_train.weights import base_fingerprint

    processes = os.environ["WORLD_SIZE"]
    if processes.isdigit():
        check_processes(model, int(processes))
    size = int(processes) if processes.isdigit() else 1  # which init_mesh refuses
    mesh = init_mesh(ParallelSection(expert_parallel_size=size, zero_stage=0, timeout_seconds=TIMEOUT_SECONDS))
    requests: list[GenerationRequest] = []
    try:
        with watched(mesh, timeout_seconds=TIMEOUT_SECONDS):
            chat_tokenizer, limit = everyone(mesh, lambda: open_model(model, adapter, tokenizer))
            fingerprint = everyone(mesh, lambda: base_fingerprint(model))
            own = {"MODEL": fingerprint, "--dtype": str(dtype), "--adapter": adapter is not None, "--keep-quantised": keep_quantised}
            require_alike(mesh, own, fix="start every rank with the same command and the same files.")
            main_only(mesh, lambda: requests.extend(ask(chat_tokenizer, limit)))
            network = everyone(mesh, lambda: load_network(model, adapter, dtype, keep_quantised=keep_quantised, mesh=mesh))
            ranks = EngineRanks(network, chat_tokenizer, mesh)
            ranks.lead(lambda: answer(ranks.engine(max_batch_size=max_batch_size, max_context=limit), chat_tokenizer, requests))
    finally:
        mesh.close()
