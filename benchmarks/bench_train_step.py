"""Forward, loss and backward of one packed row, against transformers' Mistral4ForCausalLM with the same weights.

Ours: 12 documents packed into one row of 1024 tokens without padding, chunked loss. The peer: the same documents as a right-padded batch
with an attention mask, and cross-entropy over all logits, which is what it offers without packing. Documents of mixed lengths make it
compute 2400 positions; every configuration is also compared on 8 documents of 128 tokens, where it has no padding. Losses must agree
within 1e-4 nats, and gradients within 1e-4 of their norm, before anything is timed. The optimizer is not part of the step.

    python benchmarks/bench_train_step.py            # under two minutes on one core
    python benchmarks/bench_train_step.py --repeats 1 --out quick.json

Shape suffixes: b documents, s tokens of the longest one, t tokens of the row, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import support
import torch
from torch import Tensor

from ms4_train.model import Mistral4ForCausalLM, SequenceLayout, TextConfig
from ms4_train.training.loss import IGNORED_TARGET, next_token_loss

MIXED_LENGTHS = (30, 38, 45, 52, 60, 68, 75, 84, 98, 120, 154, 200)
EQUAL_LENGTHS = (128,) * 8
LOSS_TOLERANCE = 1e-4
"""Nats per token; fp32 over three layers differs by some 1e-6."""
GRADIENT_TOLERANCE = 1e-4
"""Norm of the difference over the norm, all parameters together; fp32 differs by some 1e-6."""
SLOW_RUNS = 3
"""Timed runs of eager experts where there are 128: each takes over ten seconds."""


def our_step(model: Mistral4ForCausalLM, documents: Sequence[Tensor]) -> Callable[[], Tensor]:
    """One step of ours on the packed row; returns the mean loss."""
    lengths = [len(document) for document in documents]
    input_ids_t = torch.cat(list(documents))
    ignored = torch.tensor([IGNORED_TARGET])
    target_ids_t = torch.cat([torch.cat((document[1:], ignored)) for document in documents])
    num_trained = int((target_ids_t != IGNORED_TARGET).sum())

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        hidden_td = model(input_ids_t, SequenceLayout.from_lengths(lengths))
        loss = next_token_loss(model.lm_head, hidden_td, target_ids_t) / num_trained
        loss.backward()
        return loss.detach()

    return step


def peer_step(peer: Any, documents: Sequence[Tensor]) -> Callable[[], Tensor]:
    """One step of the peer on the padded batch; returns the mean loss."""
    pad = torch.nn.utils.rnn.pad_sequence
    input_ids_bs = pad(list(documents), batch_first=True, padding_value=peer.config.pad_token_id)
    mask_bs = pad([torch.ones_like(document) for document in documents], batch_first=True)
    target_ids_bs = pad([document[1:] for document in documents], batch_first=True, padding_value=IGNORED_TARGET)

    def step() -> Tensor:
        peer.zero_grad(set_to_none=True)
        logits_bsv = peer(input_ids=input_ids_bs, attention_mask=mask_bs, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits_bsv.flatten(0, 1), target_ids_bs.flatten(), ignore_index=IGNORED_TARGET)
        loss.backward()
        return loss.detach()

    return step


def check(model: Mistral4ForCausalLM, peers: dict[str, Any], steps: dict[str, Callable[[], Tensor]]) -> str:
    """Runs every step once and compares losses and gradients; stops the program where they differ."""
    losses = {name: float(step()) for name, step in steps.items()}
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    worst_loss = worst_gradient = 0.0
    for name, peer in peers.items():
        worst_loss = max(worst_loss, abs(losses[name] - losses[support.OURS]))
        theirs = dict(peer.named_parameters())
        difference = sum(float((gradient - theirs[key].grad).square().sum()) for key, gradient in ours.items() if gradient is not None)
        norm = sum(float(gradient.square().sum()) for gradient in ours.values() if gradient is not None)
        worst_gradient = max(worst_gradient, (difference / norm) ** 0.5)
    if worst_loss > LOSS_TOLERANCE or worst_gradient > GRADIENT_TOLERANCE:
        raise SystemExit(f"not the same computation: losses {losses}, relative difference of gradients {worst_gradient:.2e}")
    return f"loss {losses[support.OURS]:.4f}, differs by {worst_loss:.1e}; gradients differ by {worst_gradient:.1e} of their norm"


def compare(name: str, config: TextConfig, lengths: Sequence[int], repeats: int, *, eager_repeats: int | None = None) -> support.Case:
    """Checks, then times one configuration on documents of these lengths; ``eager_repeats`` 0 leaves eager experts out."""
    model = support.make_model(config).train()
    peers = {
        title: support.make_peer(model, experts).train()
        for title, experts in support.PEERS.items()
        if experts is None or eager_repeats != 0
    }
    documents = support.random_documents(lengths, config.vocab_size, seed=1)
    steps = {support.OURS: our_step(model, documents)} | {title: peer_step(peer, documents) for title, peer in peers.items()}
    facts = {
        "lengths": list(lengths),
        "padded_tokens_of_the_peer": len(lengths) * max(lengths),
        "peers": {title: support.implementations(peer) for title, peer in peers.items()},
    }
    case = support.Case(name, sum(lengths), check(model, peers, steps), facts)
    case.seconds = support.time_interleaved(steps, repeats, {support.EAGER: repeats if eager_repeats is None else eager_repeats})
    return case


def main() -> None:
    """Runs all cases."""
    options = support.arguments(__doc__, "bench_train_step.json", default_repeats=7)
    cases = [
        compare("32 experts, d=128, 12 documents of 30-200", support.tiny_config(), MIXED_LENGTHS, options.repeats),
        compare("32 experts, d=128, 8 documents of 128", support.tiny_config(), EQUAL_LENGTHS, options.repeats),
        compare(
            "128 experts, d=256, 12 documents of 30-200", support.wide_config(), MIXED_LENGTHS, options.repeats, eager_repeats=SLOW_RUNS
        ),
        compare("128 experts, d=256, 8 documents of 128", support.wide_config(), EQUAL_LENGTHS, options.repeats, eager_repeats=0),
    ]
    support.report("bench_train_step", cases, options)


if __name__ == "__main__":
    main()
