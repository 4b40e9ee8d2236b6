"""What the comparison programs share: the peer with our weights, interleaved timing, a table and a JSON result.

Exercise it: ``python benchmarks/bench_train_step.py --repeats 1``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ms4_train.model import Mistral4ForCausalLM, RopeParameters, TextConfig, init_weights
from ms4_train.storage import atomic_write_text
from ms4_train.weights import read_model_file
from ms4_train.weights.layouts.hf_config import to_hf_config

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
OURS = "ms4-train"
EAGER = "transformers (eager experts)"
PEERS = {"transformers (default)": None, EAGER: "eager"}
"""The peer's name and its ``experts_implementation``; None leaves the choice to transformers, and attention is always its default."""


@dataclass
class Case:
    """One comparison.

    Attributes:
        name: says what is computed.
        work: number of units (tokens) per run, the same for every contestant, so that rates compare.
        checked: what was found equal before anything was timed.
        facts: sizes worth knowing beside the times.
        seconds: contestant -> CPU seconds of each run, in order; run i of all contestants belongs together. A slow one may have fewer.
    """

    name: str
    work: int
    checked: str
    facts: dict[str, Any]
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def summary(self) -> dict[str, dict[str, float]]:
        """Per contestant the median CPU seconds, units per CPU second, and its time divided by ours (median, least and most over pairs)."""
        rows = {}
        for name, seconds in self.seconds.items():
            ratios = [other / ours for other, ours in zip(seconds, self.seconds[OURS], strict=False)]
            median = statistics.median(seconds)
            rows[name] = {
                "cpu_seconds_median": median,
                "tokens_per_cpu_second": self.work / median,
                "times_ours_median": statistics.median(ratios),
                "times_ours_min": min(ratios),
                "times_ours_max": max(ratios),
            }
        return rows


def arguments(description: str | None, default_out: str, default_repeats: int) -> argparse.Namespace:
    """Reads ``--repeats`` and ``--out``, and keeps torch to one thread, without which CPU time is not comparable."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=default_repeats, help="timed runs of each contestant (default %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / default_out, help=f"JSON result (default benchmarks/results/{default_out})")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats: use 1 or more")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    return options


def tiny_config() -> TextConfig:
    """The configuration of ``configs/models/tiny.yaml``: width 128, 3 layers, 32 experts of which 4 act."""
    return read_model_file(ROOT / "configs" / "models" / "tiny.yaml")


def wide_config() -> TextConfig:
    """Width 256, 3 layers and the release's number of experts: 128 of which 4 act."""
    return TextConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=512,
        moe_intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=8,
        n_routed_experts=128,
        num_experts_per_tok=4,
        q_lora_rank=128,
        kv_lora_rank=64,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=32,
        rope_parameters=RopeParameters(),
    )


def make_model(config: TextConfig) -> Mistral4ForCausalLM:
    """Our model in fp32 with random weights, large enough that logits are far from uniform and greedy choices are no near ties."""
    model = Mistral4ForCausalLM(config)
    init_weights(model, seed=0, std=0.1)
    return model


def make_peer(model: Mistral4ForCausalLM, experts: str | None) -> Any:
    """Transformers' ``Mistral4ForCausalLM`` in fp32 with the same weights, through the ``config.json`` of our checkpoints."""
    values: dict[str, Any] = to_hf_config(model.config, dtype=torch.float32)
    chosen: dict[str, Any] = {} if experts is None else {"experts_implementation": experts}
    peer = transformers.Mistral4ForCausalLM(transformers.Mistral4Config(**values, **chosen))
    peer.load_state_dict(model.state_dict(), strict=True)
    return peer


def implementations(peer: Any) -> str:
    """What transformers resolved its attention and experts to."""
    return f"attention {peer.config._attn_implementation}, experts {peer.config._experts_implementation}"


def random_documents(lengths: Sequence[int], vocab_size: int, seed: int) -> list[Tensor]:
    """Documents (int64) of ordinary tokens: none of the control tokens below 100."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(100, vocab_size, (length,), generator=generator) for length in lengths]


def time_interleaved(
    contestants: Mapping[str, Callable[[], object]], repeats: int, fewer: Mapping[str, int] | None = None
) -> dict[str, list[float]]:
    """CPU seconds of ``repeats`` runs each, A B C, C B A, A B C: drift of a shared machine meets everyone.

    The check before it has run each contestant once already. ``fewer`` names those that take part in the first so many rounds only.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(repeats):
        names = [name for name in contestants if repeat < (fewer or {}).get(name, repeats)]
        for name in names if repeat % 2 == 0 else reversed(names):
            started = time.process_time()
            contestants[name]()
            seconds[name].append(time.process_time() - started)
    return seconds


def cpu_name() -> str:
    """The processor, as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def report(program: str, cases: Sequence[Case], options: argparse.Namespace) -> None:
    """Prints the table and writes the JSON result."""
    table = Table(title=f"{program}: CPU time, one thread, fp32; time / ours above 1: ours is faster")
    table.add_column("case", overflow="fold")
    table.add_column("program")
    for heading in ("CPU s", "tokens / CPU s", "time / ours (min - max)"):
        table.add_column(heading, justify="right")
    for case in cases:
        for index, (name, row) in enumerate(case.summary().items()):
            span = f"{row['times_ours_median']:.2f} ({row['times_ours_min']:.2f} - {row['times_ours_max']:.2f})"
            cells = (f"{row['cpu_seconds_median']:.3f}", f"{row['tokens_per_cpu_second']:.0f}", "" if name == OURS else span)
            table.add_row(case.name if index == 0 else "", name, *cells, end_section=index == len(case.seconds) - 1)
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(table)
    for case in cases:
        console.print(f"{case.name}: checked first: {case.checked}")
    result = {
        "program": program,
        "command": f"python benchmarks/{program}.py --repeats {options.repeats}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {"cpu": cpu_name(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__},
        "cases": [
            {
                "name": case.name,
                "tokens": case.work,
                "checked": case.checked,
                **case.facts,
                "summary": case.summary(),
                "cpu_seconds": case.seconds,
            }
            for case in cases
        ],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(options.out, json.dumps(result, indent=1) + "\n")
