"""``ms4 serve``: the OpenAI-compatible server over one model and its adapters.

Exercise it: ``pytest tests/ms4_train/cli/test_serve.py``, or ``ms4 serve MODEL`` and ``curl http://127.0.0.1:8000/health``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ms4_train.cli.model_options import Dtype, DtypeOption, KeepQuantisedOption, ModelArgument, TokenizerOption, load_engine, open_model
from ms4_train.errors import AdapterError, ConfigError, MissingDependencyError

if TYPE_CHECKING:
    from ms4_train.chat import ChatTokenizer
    from ms4_train.inference import Engine
    from ms4_train.serving import ServerSettings

KEYS_VARIABLE = "MS4_API_KEYS"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
DEFAULT_CONTEXT = 32_768
EXAMPLES = """
Examples:

  ms4 serve runs/tiny/full/model

  ms4 serve MODEL --adapter maths=runs/lora/adapter --max-context 16384 --deterministic

  MS4_API_KEYS=secret ms4 serve MODEL --host 0.0.0.0 --allowed-image-host images.example.org

  curl http://127.0.0.1:8000/v1/models
"""


class CacheDtype(StrEnum):
    """How latents are stored in the cache."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    fp8 = "fp8"


def _seconds(text: str) -> Any:
    return typer.Option(help=f"Seconds {text}", min=0.1)


def serve(
    model: ModelArgument,
    adapter: Annotated[list[str] | None, typer.Option(help="NAME=FOLDER of a LoRA adapter; may be repeated.", show_default=False)] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8000,
    served_model_name: Annotated[str | None, typer.Option(help="What clients call MODEL; default: its folder.", show_default=False)] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help=f"Key that clients must send; may be repeated. {KEYS_VARIABLE} (comma between) keeps it out of process lists."),
    ] = None,
    metrics_need_key: Annotated[bool, typer.Option("--metrics-need-key", help="Ask for a key at /metrics too.")] = False,
    max_batch_size: Annotated[int, typer.Option(help="Most answers computed at once.", min=1)] = 32,
    max_context: Annotated[
        int | None,
        typer.Option(
            help=f"Most tokens of prompt and answer. Default: {DEFAULT_CONTEXT}, or the model's limit.", min=2, show_default=False
        ),
    ] = None,
    cache_tokens: Annotated[int | None, typer.Option(help="Bound of the cache in tokens.", show_default=False)] = None,
    cache_dtype: Annotated[CacheDtype, typer.Option(help="Type of cached latents; auto: the model's.")] = CacheDtype.auto,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="Answers do not depend on what shares the batch.")] = False,
    no_prefix_cache: Annotated[bool, typer.Option("--no-prefix-cache", help="Compute every prompt anew.")] = False,
    allow_adapter_loading: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Clients may load and drop adapters that lie below FOLDER.", show_default=False),
    ] = None,
    allowed_image_host: Annotated[
        list[str] | None, typer.Option(help="Host that images may be fetched from; may be repeated. Data URLs always work.")
    ] = None,
    max_images: Annotated[int, typer.Option(help="Most images of a request.", min=0)] = 16,
    max_image_pixels: Annotated[int, typer.Option(help="Most pixels of an image.", min=1)] = 12_500_000,
    max_image_bytes: Annotated[int, typer.Option(help="Most bytes of an image.", min=1)] = 32 << 20,
    max_body_bytes: Annotated[int, typer.Option(help="Most bytes of a request.", min=1)] = 48 << 20,
    max_held_bytes: Annotated[int, typer.Option(help="Most bytes of requests and pixels held at once.", min=1)] = 1 << 30,
    max_prompt_tokens: Annotated[int | None, typer.Option(help="Most tokens of a prompt.", min=1, show_default=False)] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of an answer.", min=1, show_default=False)] = None,
    max_n: Annotated[int, typer.Option(help="Most answers to one prompt.", min=1)] = 16,
    max_answers: Annotated[int, typer.Option(help="Most answers computed or waiting; beyond it clients get 429.", min=1)] = 256,
    max_connections: Annotated[int, typer.Option(help="Most open connections.", min=1)] = 1024,
    header_seconds: Annotated[float, _seconds("in which the head of a request must come.")] = 10.0,
    body_seconds: Annotated[float, _seconds("in which its body must come.")] = 60.0,
    request_seconds: Annotated[float, _seconds("that an answer may take.")] = 600.0,
    stall_seconds: Annotated[float, _seconds("after which a client that reads nothing is cut off.")] = 30.0,
    drain_seconds: Annotated[float, typer.Option(help="Seconds that answers get when the server stops.", min=0)] = 30.0,
    tokenizer: TokenizerOption = None,
    dtype: DtypeOption = Dtype.auto,
    keep_quantised: KeepQuantisedOption = False,
) -> None:
    """Serve a model to OpenAI's clients. Ctrl-C lets unfinished answers end, a second one does not."""
    options = dict(locals())
    _check_packages()
    adapters = _named_folders(adapter or [])
    settings = _settings(options, tuple(adapters))
    chat_tokenizer, limit = open_model(model, None, tokenizer)
    _check_address(host, port)
    engine = _engine(options, chat_tokenizer, min(max_context or DEFAULT_CONTEXT, limit))
    for name, folder in adapters.items():
        engine.load_adapter(name, folder)
    with _log_to_stderr():
        _run(engine, chat_tokenizer, settings, host, port)


def _check_packages() -> None:
    """Say what to install before a model is loaded.

    Raises:
        MissingDependencyError: the extra "serve" is not installed.
    """
    from importlib.util import find_spec

    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"{', '.join(missing)} not installed.", fix="pip install 'ms4-train[serve]'")


def _named_folders(texts: list[str]) -> dict[str, Path]:
    """Adapters by name.

    Raises:
        AdapterError: not NAME=FOLDER, a name given twice, or no folder.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, _, folder = text.partition("=")
        if not name or not folder or name in found:
            raise AdapterError(f"{text!r} is not NAME=FOLDER with a name of its own.", key="--adapter", fix="--adapter maths=FOLDER")
        if not Path(folder).is_dir():
            raise AdapterError("is not a folder.", file=folder, key="--adapter", fix="give a folder with adapter_config.json.")
        found[name] = Path(folder)
    return found


def _settings(options: dict[str, Any], adapters: tuple[str, ...]) -> ServerSettings:
    """The server's settings.

    Raises:
        ConfigError: options that do not go together.
    """
    from ms4_train.serving import ServerSettings
    from ms4_train.untrusted import ImageLimits

    folder = options["allow_adapter_loading"]
    if folder is not None and not folder.is_dir():
        raise ConfigError("is not a folder.", file=folder, key="--allow-adapter-loading", fix="name the folder that holds the adapters.")
    keys = [*(options["api_key"] or []), *filter(None, map(str.strip, os.environ.get(KEYS_VARIABLE, "").split(",")))]
    is_local = options["host"] in LOOPBACK
    same = (
        "metrics_need_key", "max_images", "max_body_bytes", "max_held_bytes", "max_prompt_tokens", "max_tokens", "max_n", "max_answers",
        "max_connections", "header_seconds", "body_seconds", "request_seconds", "stall_seconds", "drain_seconds",
    )  # fmt: skip
    return ServerSettings(
        model_name=options["served_model_name"] or options["model"].resolve().name,
        adapters=adapters,
        adapter_folder=folder,
        api_keys=tuple(keys),
        # On a machine of its own a server without keys still hears web pages that its browser shows.
        allowed_hosts=LOOPBACK if is_local and not keys else (),
        image_hosts=tuple(options["allowed_image_host"] or ()),
        image_limits=ImageLimits(max_bytes=options["max_image_bytes"], max_pixels=options["max_image_pixels"]),
        **{name: options[name] for name in same},
    )


def _engine(options: dict[str, Any], tokenizer: ChatTokenizer, max_context: int) -> Engine:
    """The engine over the model, without adapters yet.

    Raises:
        MS4Error: the weights cannot be used, or a bound makes no sense.
    """
    import torch

    from ms4_train.inference import Engine
    from ms4_train.weights import base_fingerprint

    model = options["model"]
    network = load_engine(model, None, tokenizer, options["dtype"], keep_quantised=options["keep_quantised"]).model
    types = {CacheDtype.float32: torch.float32, CacheDtype.bfloat16: torch.bfloat16, CacheDtype.fp8: torch.float8_e4m3fn}
    engine = Engine(
        network,
        tokenizer,
        max_batch_size=options["max_batch_size"],
        max_context=max_context,
        cache_tokens=options["cache_tokens"],
        cache_dtype=types.get(options["cache_dtype"]),
        prefix_cache=not options["no_prefix_cache"],
        deterministic=options["deterministic"],
    )
    if options["adapter"] or options["allow_adapter_loading"]:
        engine.adapters.base_fingerprint = base_fingerprint(model)
    return engine


@contextlib.contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Inside the block: one line for each request, and uvicorn's warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = {logging.getLogger("ms4_train"): logging.INFO, logging.getLogger("uvicorn"): logging.WARNING}
    before = [(logger, logger.level, logger.propagate) for logger in loggers]
    for logger, level in loggers.items():
        logger.setLevel(level)
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, level, propagate in before:
            logger.setLevel(level)
            logger.removeHandler(handler)
            logger.propagate = propagate


def _check_address(host: str, port: int) -> None:
    """A port that is taken is no news for after minutes of loading. It is let go again: nobody shall wait there for a server.

    Raises:
        ConfigError: the address cannot be used.
    """
    from ms4_train.serving.http_server import bind

    bind(host, port).close()


def _run(engine: Engine, tokenizer: ChatTokenizer, settings: ServerSettings, host: str, port: int) -> None:
    """Serve until a signal ends it."""
    from ms4_train.inference.background import EngineThread
    from ms4_train.serving import create_app, run_server
    from ms4_train.serving.http_server import bind

    listener = bind(host, port)
    with EngineThread(engine) as thread:
        address = f"[{host}]" if ":" in host else host
        typer.echo(f"http://{address}:{listener.getsockname()[1]}/v1 serves {', '.join((settings.model_name, *settings.adapters))}")
        typer.echo(_limits_line(engine, settings))
        if host not in LOOPBACK and not settings.api_keys:
            warning = "warning: whoever reaches this address may use the server, for it has no API key; set one with --api-key."
            typer.echo(warning, err=True)
        run_server(create_app(thread, tokenizer, settings), listener)
        error = thread.error
    if error is not None:
        raise error


def _limits_line(engine: Engine, settings: ServerSettings) -> str:
    blocks = engine.stats
    return (
        f"context {engine.max_context} tokens, batch {engine.max_batch_size}, cache {blocks.blocks_total * engine.block_size} tokens "
        f"({blocks.blocks_total * blocks.bytes_per_block / 2**20:.0f} MiB); at most {settings.max_answers} answers at work, "
        f"bodies of {settings.max_body_bytes / 2**20:.0f} MiB, {settings.max_images} images, {settings.request_seconds:g} s; "
        f"keys: {len(settings.api_keys) or 'none'}"
    )
