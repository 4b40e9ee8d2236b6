"""What ``inference.py`` compares: two tiny models, and the prompts of every case, new ones for every run so that no cache of prefixes hits.

Exercise it: ``python benchmarks/inference.py --list``.
"""

from __future__ import annotations

import dataclasses
import math
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from inference_gguf import write_gguf

from ms4_train.model import Mistral4ForCausalLM, RopeParameters, TextConfig, init_weights
from ms4_train.weights import save_model
from ms4_train.weights.convert import convert

Kind = Literal["batch", "uneven", "samples", "arrivals"]
EXPERTS = {"tiny16": 16, "tiny128": 128}
VOCAB_SIZE = 8192
WEIGHT_STD = 0.1
"""Of random weights: large enough that greedy choices are no near ties."""


@dataclass(frozen=True)
class Work:
    """One run of a case: the same for every contestant.

    Attributes:
        name: of the case.
        prompts: token ids.
        new_tokens: of each prompt's answers; nothing ends one earlier.
        samples: answers to each prompt. One is greedy; several are sampled at temperature 1.
        arrivals: seconds at which each prompt comes; empty: all are there at once.
    """

    name: str
    prompts: list[list[int]]
    new_tokens: list[int]
    samples: int = 1
    arrivals: list[float] = dataclasses.field(default_factory=list)

    @property
    def num_new(self) -> int:
        """Tokens of all answers."""
        return sum(self.new_tokens) * self.samples

    def to_dict(self) -> dict[str, Any]:
        """As the workers take it."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: ``model/case``.
        kind: what is measured.
        what: one line for people.
        rounds: timed runs of each contestant, by default.
        lengths: prompt and answer lengths of a run, drawn with its random numbers.
        samples: see :class:`Work`.
        rate: requests per second that come, on average; 0: all at once.
    """

    name: str
    kind: Kind
    what: str
    rounds: int
    lengths: Callable[[random.Random], list[tuple[int, int]]]
    samples: int = 1
    rate: float = 0.0

    @property
    def model(self) -> str:
        """Which of ``EXPERTS``."""
        return self.name.split("/")[0]

    def work(self, run: int) -> Work:
        """The prompts of a run."""
        rng = random.Random(zlib.crc32(f"{self.name} {run}".encode()))
        lengths = self.lengths(rng)
        # None of the control tokens below 100.
        prompts = [[rng.randrange(100, VOCAB_SIZE) for _ in range(length)] for length, _ in lengths]
        arrivals, now = [], 0.0
        for _ in lengths if self.rate else ():
            arrivals.append(now)
            now += rng.expovariate(self.rate)
        return Work(self.name, prompts, [new for _, new in lengths], self.samples, arrivals)


def _equal(count: int, prompt: int, new: int) -> Callable[[random.Random], list[tuple[int, int]]]:
    return lambda rng: [(prompt, new)] * count


def _uneven(count: int, prompts: tuple[int, int], new: tuple[int, int]) -> Callable[[random.Random], list[tuple[int, int]]]:
    def between(rng: random.Random, least: int, most: int) -> int:
        return round(math.exp(rng.uniform(math.log(least), math.log(most))))

    def draw(rng: random.Random) -> list[tuple[int, int]]:
        return [(between(rng, *prompts), between(rng, *new)) for _ in range(count)]

    return draw


def _cases() -> list[Case]:
    found = []
    for model in EXPERTS:
        for count, rounds in ((1, 11), (8, 9), (32, 9)):
            what = f"{count} prompt{'s' * (count > 1)} of 128 tokens, 128 new ones each"
            found.append(Case(f"{model}/batch-{count}", "batch", what, rounds, _equal(count, 128, 128)))
        what = "64 prompts of 16 to 1,500 tokens, answers of 16 to 256, both log-uniform"
        found.append(Case(f"{model}/uneven", "uneven", what, 5, _uneven(64, (16, 1500), (16, 256))))
        what = "8 samples of one prompt of 2,000 tokens, 128 new ones each"
        found.append(Case(f"{model}/samples", "samples", what, 5, _equal(1, 2000, 128), samples=8))
        for rate in (4, 8):
            what = f"48 prompts of 32 to 512 tokens come at {rate} per second (Poisson), answers of 64"
            name = f"{model}/arrivals-{rate}"
            found.append(Case(name, "arrivals", what, 3, _uneven(48, (32, 512), (64, 64)), rate=rate))
    return found


CASES = {case.name: case for case in _cases()}
QUICK = ("tiny16/batch-8",)


def tiny_config(experts: int) -> TextConfig:
    """Hidden size 256, 4 layers, 8 heads, experts of width 128 of which 4 act, a vocabulary of 8192."""
    return TextConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=512,
        moe_intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        n_shared_experts=1,
        n_routed_experts=experts,
        num_experts_per_tok=4,
        q_lora_rank=128,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=32,
        v_head_dim=64,
        rope_parameters=RopeParameters(),
    )


def write_model(name: str, folder: Path) -> dict[str, str]:
    """Write the same fp32 weights in the layouts that the contestants read.

    Returns:
        Folder or file of each layout: ``hf``, ``native``, ``gguf``.
    """
    model = Mistral4ForCausalLM(tiny_config(EXPERTS[name]))
    init_weights(model, seed=0, std=WEIGHT_STD)
    places = {"hf": folder / name / "hf", "native": folder / name / "native", "gguf": folder / name / "model.gguf"}
    save_model(model.state_dict(), places["hf"], config=model.config, dtype=torch.float32)
    convert(places["hf"], places["native"], to="native", progress=None)
    write_gguf(model, places["gguf"])
    return {layout: str(place) for layout, place in places.items()}
