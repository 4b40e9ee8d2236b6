"""transformers as a contestant: ``generate`` with its default cache and attention, and each of its implementations of experts.

Prompts of different lengths are padded on the left and hidden by a mask. Where answers are of different lengths, a batch runs until its
longest one ends; further variants generate in smaller batches of requests whose answers are about as long. Several samples of one prompt
share its cache: the prompt is computed once, and its cache repeated.
Exercise it: ``python benchmarks/inference.py --quick --peers transformers``.

Shape suffixes: b prompts, s tokens of the longest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

PADDING = 11
SMALLER_BATCH = 16


class Contestant:
    """transformers' ``Mistral4ForCausalLM`` on one folder."""

    serves = False

    def __init__(self, model: dict[str, str], threads: int) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        transformers.logging.set_verbosity_error()
        loaded: Any = transformers.Mistral4ForCausalLM.from_pretrained(model["hf"], dtype=torch.float32)
        self._model = loaded.eval()
        self._batch_size = 1
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = PADDING
        self.facts = {
            "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
            "attention": loaded.config._attn_implementation,
        }

    def variants(self, work: dict[str, Any]) -> tuple[str, ...]:
        """Implementations of experts, and sizes of batches where they matter."""
        if len(set(work["new_tokens"])) == 1:
            return ("grouped_mm", "eager")
        return ("grouped_mm", "eager", f"grouped_mm, {SMALLER_BATCH} at once", f"eager, {SMALLER_BATCH} at once")

    def prepare(self, variant: str, work: dict[str, Any]) -> None:
        """Choose the implementation of experts."""
        experts, *batches = variant.split(",")
        self._model.set_experts_implementation(experts)
        self._batch_size = SMALLER_BATCH if batches else len(work["prompts"])

    @torch.inference_mode()
    def generate(self, work: dict[str, Any]) -> list[list[int]]:
        """Tokens of every prompt's answers."""
        prompts, new_tokens = work["prompts"], work["new_tokens"]
        if work["samples"] > 1:
            return self._samples(prompts, new_tokens, work["samples"])
        order = sorted(range(len(prompts)), key=lambda index: new_tokens[index])
        answers: list[list[int]] = [[] for _ in prompts]
        for start in range(0, len(order), self._batch_size):
            group = order[start : start + self._batch_size]
            longest = max(new_tokens[index] for index in group)
            for index, tokens in zip(group, self._batch([prompts[index] for index in group], longest), strict=True):
                answers[index] = tokens[: new_tokens[index]]
        return answers

    def _batch(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        longest = max(map(len, prompts))
        ids_bs = torch.tensor([[PADDING] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask_bs = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        output_bs: Tensor = self._model.generate(input_ids=ids_bs, attention_mask=mask_bs, do_sample=False, max_new_tokens=new_tokens)
        return output_bs[:, longest:].tolist()

    def _samples(self, prompts: Sequence[Sequence[int]], new_tokens: Sequence[int], count: int) -> list[list[int]]:
        answers: list[list[int]] = []
        for prompt, new in zip(prompts, new_tokens, strict=True):
            ids_bs = torch.tensor([prompt])
            cache = transformers.DynamicCache(config=self._model.config)
            # The last token is left for `generate`, which needs one to go on from.
            self._model(input_ids=ids_bs[:, :-1], past_key_values=cache, logits_to_keep=1)
            cache.batch_repeat_interleave(count)
            ids_bs = ids_bs.repeat(count, 1)
            options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": new}
            output_bs: Tensor = self._model.generate(
                input_ids=ids_bs, attention_mask=torch.ones_like(ids_bs), past_key_values=cache, **options
            )
            answers += output_bs[:, len(prompt) :].tolist()
        return answers
