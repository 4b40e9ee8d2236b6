"""Engines that live in an environment of their own (``.venv-peers``, made by ``make peers``), as functions.

Their programs run in processes of their own; nothing of theirs is imported here. Without the environment a test skips and says so; with
``MS4_REQUIRE_PEERS=1``, as under ``make test-full``, it fails instead.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-peers" / "bin" / "python"
VLLM_PROGRAM = Path(__file__).with_name("vllm_greedy.py")

_VLLM_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # The CPU kernel for latent attention knows one width only, that of another model.
    "VLLM_MLA_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # Other tests run beside this one: no cores of its own.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True)
class VllmAnswer:
    """What vLLM said: new tokens of every prompt, the end token included; seconds of loading and generating; which class served it."""

    tokens: list[list[int]]
    seconds: dict[str, float]
    version: str
    architecture: str


def require_peers() -> None:
    """Skip the calling test, or fail it where peers are required, when their environment is absent."""
    if PYTHON.exists():
        return
    reason = "there is no .venv-peers; `make peers` builds it"
    if os.environ.get("MS4_REQUIRE_PEERS") == "1":
        pytest.fail(f"MS4_REQUIRE_PEERS=1, but {reason}")
    pytest.skip(reason)


def vllm_greedy(folder: Path, prompts: Sequence[Sequence[int]], max_tokens: int, **options: Any) -> list[list[int]]:
    """Greedy tokens in fp32 of every prompt from vLLM serving a Mistral-native folder; options as of :func:`ask_vllm`."""
    return ask_vllm(folder, prompts, max_tokens, **options).tokens


def ask_vllm(
    folder: Path,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    *,
    end_token_id: int | None = None,
    images: Sequence[Path | None] | None = None,
    engine: Mapping[str, Any] | None = None,
    timeout_s: float = 600,
) -> VllmAnswer:
    """Serve a folder and ask it once.

    Args:
        folder: of the native layout; multimodal ones need their ``tekken.json``.
        prompts: token ids.
        max_tokens: at most so many new ones.
        end_token_id: stops at this token; None stops at none.
        images: a picture's file for each prompt, or None.
        engine: further arguments of ``vllm.LLM``.
        timeout_s: after which the process is killed.
    """
    require_peers()
    with tempfile.TemporaryDirectory(prefix="ms4-vllm-") as name:
        work = Path(name)
        request, answer, log = (work / file for file in ("request.json", "answer.json", "log.txt"))
        content = {
            "folder": str(folder.resolve()),
            "prompts": [list(prompt) for prompt in prompts],
            "max_tokens": max_tokens,
            "end_token_id": end_token_id,
            "images": [str(image) if image else None for image in images] if images else None,
            "engine": dict(engine or {}),
        }
        request.write_text(json.dumps(content))
        caches = {"VLLM_CACHE_ROOT": str(work / "cache"), "VLLM_CONFIG_ROOT": str(work / "config")}
        # -P: the program's own folder holds a `tokenizers.py`, which must not stand in for the library.
        command = [str(PYTHON), "-P", str(VLLM_PROGRAM), str(request), str(answer)]
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        code = _run(command, {**inherited, **_VLLM_ENVIRONMENT, **caches}, log, timeout_s)
        if code != 0 or not answer.exists():
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-60:])
            what = f"did not answer within {timeout_s:g} s" if code is None else f"ended with {code}"
            pytest.fail(f"vLLM {what} for {folder}\n{tail}", pytrace=False)
        return VllmAnswer(**json.loads(answer.read_text()))


def _run(command: list[str], environment: Mapping[str, str], log: Path, timeout_s: float) -> int | None:
    """Exit code, or None when the time was up; the process's own children end with it."""
    with log.open("w") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
