"""A tiny model that this program fine-tuned, for comparisons with other engines: chat rows in both reasoning modes, seconds on one core.

Its base is a multimodal checkpoint of ``support/layouts.py``, whose rotary embedding is stretched and whose query scale acts from position
32 on, so that a prompt of fifty tokens goes through everything that a long one goes through in the real model.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from support import layouts
from support.sft_files import sft_run
from support.tokenizers import tiny_tokenizer

from ms4_evals.tasks.arithmetic import make_problems, write_training_rows
from ms4_recipes import sft
from ms4_train.chat import ChatTokenizer
from ms4_train.inference import Engine, SamplingParams
from ms4_train.inference.chat import chat_request
from ms4_train.inference.request import GenerationRequest
from ms4_train.weights import load_model

TINY = dataclasses.replace(layouts.TINY, original_max_position_embeddings=32, yarn_factor=16.0, max_position_embeddings=512)
CHAIN_STEPS = 4
MAX_TOKENS = 72
TRAINING = {
    "max_steps": 600,
    "learning_rate": 5e-3,
    "adam_beta2": 0.99,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.05,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
}


@dataclass(frozen=True)
class Trained:
    """``base``: the HF folder it started from; ``model``: what the recipe wrote; ``tokenizer``: of both."""

    base: Path
    model: Path
    tokenizer: ChatTokenizer

    def prompts(self) -> list[GenerationRequest]:
        """25 held-out problems in mode none, then the same in mode high."""
        problems = make_problems("digits", 25, 7, "heldout", steps=CHAIN_STEPS)
        sampling = SamplingParams(max_tokens=MAX_TOKENS)
        return [
            chat_request(
                self.tokenizer,
                [{"role": "user", "content": problem.question}],
                request_id=f"{effort} {index}",
                reasoning_effort=effort,
                sampling=sampling,
            )
            for effort in ("none", "high")
            for index, problem in enumerate(problems)
        ]

    def our_tokens(self) -> list[list[int]]:
        """Greedy tokens of this program's engine in fp32 for :meth:`prompts`, the end token included where there is one."""
        engine = Engine(load_model(self.model, dtype=torch.float32).eval(), self.tokenizer)
        return [
            completion.token_ids + [self.tokenizer.eos_id] * (completion.finish_reason == "stop")
            for completion in engine.generate(self.prompts())
        ]


def train_tiny(folder: Path) -> Trained:
    """Make the base and the rows below ``folder`` and fine-tune all text weights in fp32."""
    base, rows = folder / "base", folder / "rows.jsonl"
    layouts.hf_folder(base, dtype=torch.float32, tokenizer=True, tiny=TINY)
    write_training_rows("digits", 6000, 1, rows, steps=CHAIN_STEPS)
    data = {"train": [{"path": str(rows)}], "max_length": 512}
    model = sft.run(sft_run(folder, data=data, training={**TRAINING, "logging_steps": 100}))
    return Trained(base, model, tiny_tokenizer())
