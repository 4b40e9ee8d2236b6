"""Greedy generation of 64 tokens for 1 to 64 prompts, against transformers' ``generate`` with the same weights.

Ours: ``Engine.generate`` over the latent cache. The peer: ``Mistral4ForCausalLM.generate(do_sample=False)`` with its default cache, on the
same prompts of 34 to 66 tokens, padded on the left with an attention mask. No token ends an answer early, so both choose 64 tokens per
prompt. The chosen tokens must be identical before anything is timed.

    python benchmarks/bench_generate.py              # under two minutes on one core
    python benchmarks/bench_generate.py --repeats 1 --out quick.json

Shape suffixes: b prompts, s tokens of the longest one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import support
import torch
from torch import Tensor

from ms4_train.inference import Engine, GenerationRequest, SamplingParams
from ms4_train.model import Mistral4ForCausalLM

NEW_TOKENS = 64
PADDING = 11
"""The release's padding token; hidden from the peer by the mask, so any would do."""
BATCHES = (1, 8, 32, 64)


class EndlessTokenizer:
    """What the engine asks of a tokenizer, with an end token that no model can choose."""

    def __init__(self, vocab_size: int) -> None:
        self.eos_id = -1
        self.vocab_size = vocab_size

    def decode(self, ids: Sequence[int], *, keep_special: bool = False) -> str:
        """Never asked for: the requests have no stop text."""
        raise AssertionError("no request has a stop text")

    def encode_text(self, text: str) -> list[int]:
        """Never asked for: the requests have no stop text."""
        raise AssertionError("no request has a stop text")


def our_run(model: Mistral4ForCausalLM, prompts: Sequence[Tensor]) -> Callable[[], list[list[int]]]:
    """One call of the engine; returns the chosen tokens of each prompt."""
    engine = Engine(model, EndlessTokenizer(model.config.vocab_size), max_batch_size=len(prompts))
    sampling = SamplingParams(max_tokens=NEW_TOKENS)
    requests = [GenerationRequest(str(index), tuple(prompt.tolist()), sampling) for index, prompt in enumerate(prompts)]
    return lambda: [completion.token_ids for completion in engine.generate(requests)]


def peer_run(peer: Any, prompts: Sequence[Tensor]) -> Callable[[], list[list[int]]]:
    """One call of the peer's ``generate``; returns the chosen tokens of each prompt."""
    longest = max(len(prompt) for prompt in prompts)
    input_ids_bs = torch.stack([torch.nn.functional.pad(prompt, (longest - len(prompt), 0), value=PADDING) for prompt in prompts])
    mask_bs = torch.stack([torch.nn.functional.pad(torch.ones_like(prompt), (longest - len(prompt), 0)) for prompt in prompts])
    peer.generation_config.eos_token_id = None
    peer.generation_config.pad_token_id = PADDING

    def run() -> list[list[int]]:
        output_bs = peer.generate(input_ids=input_ids_bs, attention_mask=mask_bs, do_sample=False, max_new_tokens=NEW_TOKENS)
        return output_bs[:, longest:].tolist()

    return run


def check(runs: dict[str, Callable[[], list[list[int]]]]) -> str:
    """Runs everyone once and compares all tokens; stops the program where they differ."""
    answers = {name: run() for name, run in runs.items()}
    ours = answers[support.OURS]
    if not all(len(answer) == NEW_TOKENS for answer in ours):
        raise SystemExit("an answer ended early")
    for name, theirs in answers.items():
        different = [index for index, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other]
        if different:
            raise SystemExit(f"{name} chose other tokens for prompts {different}")
    distinct = len({token for answer in ours for token in answer})
    return f"all {len(ours) * NEW_TOKENS} tokens identical, {distinct} distinct ones"


def main() -> None:
    """Runs all batch sizes."""
    options = support.arguments(__doc__, "generate.json", default_repeats=5)
    model = support.make_model(support.tiny_config()).eval()
    peers = {title: support.make_peer(model, experts).eval() for title, experts in support.PEERS.items()}
    lengths = [34 + (index * 7) % 33 for index in range(max(BATCHES))]
    prompts = support.random_documents(lengths, model.config.vocab_size, seed=2)
    cases = []
    for size in BATCHES:
        runs = {support.OURS: our_run(model, prompts[:size])} | {title: peer_run(peer, prompts[:size]) for title, peer in peers.items()}
        facts = {"lengths": lengths[:size], "peers": {title: support.implementations(peer) for title, peer in peers.items()}}
        case = support.Case(f"{size} prompt{'s' * (size > 1)}, 32 experts, d=128", size * NEW_TOKENS, check(runs), facts)
        case.seconds = support.time_interleaved(runs, options.repeats)
        cases.append(case)
    support.report("bench_generate", cases, options)


if __name__ == "__main__":
    main()
