"""Greedy tokens of a Mistral-native folder from vLLM. A program for ``.venv-peers``: it imports nothing of this project.

    .venv-peers/bin/python -P tests/support/vllm_greedy.py request.json answer.json

``request.json`` is what ``ask_vllm`` of ``support/peers.py`` writes; that also sets the environment variables. ``answer.json``:
{"tokens": lists of token ids, the end included, "seconds": {"load", "generate"}, "version", "architecture"}.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
import time
import types
from pathlib import Path
from typing import Any


def do_without_torchvision() -> None:
    """Let vLLM's multimodal class be imported although torchvision, whose only build wants CUDA, cannot be.

    One of its imports reaches a module of transformers that imports torchvision whole; nothing of it is called for native files.
    vLLM looks at model classes in a process of their own, which would not know of this, so it is made to look here.
    """
    from transformers.utils.import_utils import is_torchvision_available

    assert not is_torchvision_available()  # and it keeps saying so: the answer is cached
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.v2", "torchvision.transforms.v2.functional"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda function: function()


def main(request_file: str, answer_file: str) -> None:
    """Serve the folder in this process and write what it says."""
    request = json.loads(Path(request_file).read_text())
    do_without_torchvision()
    import vllm

    started = time.monotonic()
    longest = max(map(len, request["prompts"])) + request["max_tokens"]
    options = {
        "config_format": "mistral",
        "load_format": "mistral",
        # Prompts are token ids, so a text model needs no tokenizer; the multimodal class insists on one.
        "tokenizer_mode": "mistral",
        "skip_tokenizer_init": not (Path(request["folder"]) / "tekken.json").exists(),
        "dtype": "float32",
        # Inductor's fusions add another rounding, and compiling takes minutes.
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "max_model_len": longest + 8,
        "max_num_seqs": 16,
        "disable_log_stats": True,
    }
    engine = vllm.LLM(model=request["folder"], **(options | request["engine"]))
    loaded = time.monotonic()
    end = request["end_token_id"]
    parameters = vllm.SamplingParams(
        temperature=0.0,
        max_tokens=request["max_tokens"],
        stop_token_ids=None if end is None else [end],
        ignore_eos=end is None,
        detokenize=False,
    )
    prompts: list[Any] = [{"prompt_token_ids": ids} for ids in request["prompts"]]
    for prompt, image in zip(prompts, request["images"] or [], strict=bool(request["images"])):
        if image is not None:
            from PIL import Image

            prompt["multi_modal_data"] = {"image": Image.open(image).convert("RGB")}
    outputs = engine.generate(prompts, parameters, use_tqdm=False)
    answer = {
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "seconds": {"load": loaded - started, "generate": time.monotonic() - loaded},
        "version": vllm.__version__,
        "architecture": engine.llm_engine.model_config.architecture,
    }
    Path(answer_file).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
