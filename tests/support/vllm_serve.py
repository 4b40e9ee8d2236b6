"""vLLM's server on the CPU. A program for ``.venv-peers``: it imports nothing of this project.

    .venv-peers/bin/python -P tests/support/vllm_serve.py --model FOLDER --port 8000 ...

Arguments are those of ``vllm serve``; ``serving_vllm`` of ``support/eval_servers.py`` sets the environment variables. vLLM starts processes
that import this file again, so what it mends, it mends at import.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path
from typing import Any


def _mend() -> None:
    # -P keeps this folder off the path, because its `tokenizers.py` must not stand in for the library.
    spec = importlib.util.spec_from_file_location("vllm_greedy", Path(__file__).with_name("vllm_greedy.py"))
    assert spec is not None
    assert spec.loader is not None
    greedy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(greedy)
    greedy.do_without_torchvision()

    # vLLM 0.32 leaves out an argument that mistral-common 1.13 insists on; only calls of tools are about it.
    from mistral_common.guidance.grammar_factory import GrammarFactory

    get_lark = GrammarFactory.get_lark_from_jinja

    def with_default(self: Any, *args: Any, force_tool_names: bool = False, **options: Any) -> str:
        return get_lark(self, *args, force_tool_names=force_tool_names, **options)

    GrammarFactory.get_lark_from_jinja = with_default


_mend()

if __name__ == "__main__":
    sys.argv[0] = "vllm"
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=False)
