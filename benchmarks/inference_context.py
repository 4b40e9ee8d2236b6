"""Memory of a context of up to 262,144 tokens: one prompt of that length and some tokens after it, with a model small enough for that.

Each length has a process of its own, which says what is resident before the engine opens, at most while it works, and what the latent
cache holds. The cache grows with the number of tokens; nothing else may. Exercise it: ``python benchmarks/inference.py --cases context``.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import support

WHAT = "one prompt of 8,192 to 262,144 tokens with a model of 2 layers of width 64: memory and time"
LENGTHS = (8_192, 32_768, 131_072, 262_144)
NEW_TOKENS = 16
MARGIN = 32
"""Between the longest context and the prompt, new tokens included."""
LARGEST_SHARE = 1.5
"""Resident memory per token from the second longest to the longest, over that of the steps before: more would not be linear."""


def measure_all(threads: int) -> dict[str, Any]:
    """Measure every length, one after the other; the result of the case."""
    rows = []
    for length in LENGTHS:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, str(Path(__file__).resolve()), str(length), str(threads)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{length} tokens failed:\n{done.stderr[-3000:]}")
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        print(
            f"  {length:7} tokens: {row['increase_mib']:.1f} MiB above the model, of which cache {row['cache_mib']:.1f}; "
            f"{row['cache_bytes_per_token']:.0f} bytes of cache per token; prompt {row['prompt_seconds']:.1f} s, "
            f"then {row['seconds_per_token'] * 1e3:.1f} ms a token",
            flush=True,
        )
    return {"what": WHAT, "kind": "context", "lengths": rows, "verdicts": [verdict(rows)]}


def verdict(rows: list[dict[str, float]]) -> str:
    """Whether memory grew in proportion to the length: bytes per further token of the longest stretch against the stretch before it."""
    slopes = [
        (after["increase_mib"] - before["increase_mib"]) / (after["tokens"] - before["tokens"]) * 2**20
        for before, after in itertools.pairwise(rows)
    ]
    words = ", ".join(f"{slope:.0f}" for slope in slopes)
    is_linear = slopes[-1] <= LARGEST_SHARE * max(slopes[-2], 1.0)
    return f"memory {'grows linearly' if is_linear else 'GROWS FASTER THAN LINEARLY'}: {words} bytes for every further token"


def main(length: int, threads: int) -> None:
    """Answer one prompt of ``length`` tokens, new ones included, and print what it took."""
    import torch
    from inference_ours import EndlessTokenizer
    from inference_worker import forget_peak, resident

    from ms4_train.inference import Engine, GenerationRequest, SamplingParams
    from ms4_train.model import Mistral4ForCausalLM, RopeParameters, TextConfig, init_weights

    torch.set_num_threads(threads)
    config = TextConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        n_shared_experts=1,
        n_routed_experts=4,
        num_experts_per_tok=2,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        rope_parameters=RopeParameters(),
    )
    model = Mistral4ForCausalLM(config)
    init_weights(model, seed=0, std=0.1)
    engine = Engine(model.eval(), EndlessTokenizer(config.vocab_size), max_batch_size=1, max_context=length)
    small = GenerationRequest("small", tuple(range(100, 200)), SamplingParams(max_tokens=4))
    engine.generate([small])  # compiles and allocates what does not depend on the length
    prompt = tuple(support.random_documents([length - MARGIN], config.vocab_size, seed=1)[0].tolist())
    request = GenerationRequest("long", prompt, SamplingParams(max_tokens=NEW_TOKENS))
    forget_peak()
    before = resident("VmRSS")
    with engine:
        started = time.perf_counter()
        (completion,) = engine.generate([request])
        seconds = time.perf_counter() - started
        stats = engine.stats
    assert len(completion.token_ids) == NEW_TOKENS
    cache = (stats.blocks_used + stats.blocks_cached) * stats.bytes_per_block
    first = completion.first_token_seconds
    print(
        json.dumps(
            {
                "tokens": length,
                "increase_mib": resident("VmHWM") - before,
                "cache_mib": cache / 2**20,
                "cache_bytes_per_token": stats.bytes_per_block / engine.block_size,
                "prompt_seconds": first,
                "seconds_per_token": (seconds - first) / (NEW_TOKENS - 1),
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
