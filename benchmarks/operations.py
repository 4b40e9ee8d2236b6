"""Each operation of ``ms4_kernels`` against named peers on the same work: experts, routing, attention, head and loss.

On a CPU: the path that runs there, fp32, one thread, CPU seconds, at a size of which a laptop computes many. On a CUDA device: the Triton
kernels, bf16, at the sizes of the release's layers. Outputs and gradients must agree before anything is timed; contestants take turns, and
every ratio is one of neighbours in time. Beside the time: what is kept for the backward pass, and on a device the peak of its memory.

    python benchmarks/operations.py                     # on the CPU, to benchmarks/results/operations.json and .md
    python benchmarks/operations.py --quick             # one round of few cases, nothing written; under a minute
    python benchmarks/operations.py --device cuda       # at the release's sizes, to benchmarks/results/gpu.json and .md
    python benchmarks/operations.py --tiny              # every case of the CUDA run on toy sizes, on any device: does the program run?
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import operations_report as report
import support
import torch
import transformers
from operations_experts import ExpertsWork, experts_comparison
from operations_others import Setting, attention_comparison, loss_comparison, routing_comparison, sort_comparison
from operations_timing import Comparison, Plan, Result, measure

OPERATIONS = ("experts", "routing", "attention", "cross_entropy")
MIXED = (32, 48, 64, 80, 96, 112, 128, 144, 160, 192, 224, 256, 512)
"""Documents of 2048 tokens in all, as in ``train_step.py``."""


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        experts: numbers of experts.
        tokens: of a batch.
        modes: of the experts operation.
        quantised: tokens of the calls with quantised stacks.
        mixed: lengths of documents; as many tokens in four equal documents are measured too.
    """

    experts: tuple[int, ...]
    tokens: tuple[int, ...]
    hidden: int
    width: int
    heads: int
    head_width: int
    vocabulary: int
    modes: tuple[str, ...] = ("forward", "full", "lora")
    quantised: tuple[int, ...] = ()
    mixed: tuple[int, ...] = MIXED
    directions: tuple[bool, ...] = (False, True)
    masked: tuple[float, ...] = (0.0, 0.5)


SMALL = Sizes((32, 128), (512, 2048), 256, 128, 8, 64, 8192, quantised=(512, 2048))
QUICK = replace(SMALL, experts=(32,), tokens=(512,), quantised=(512,), directions=(True,), masked=(0.5,))
DEVICE_MODES = ("forward", "frozen", "full", "lora")
RELEASE = Sizes((128,), (512, 2048, 8192, 32768), 4096, 2048, 32, 128, 131072, DEVICE_MODES, (2048, 8192), tuple(4 * x for x in MIXED))
TINY = Sizes((8,), (64,), 64, 32, 2, 16, 160, DEVICE_MODES, (64,), (5, 30, 13, 16))


def builders(sizes: Sizes, setting: Setting, operations: tuple[str, ...]) -> Iterator[Callable[[], Comparison]]:
    """What makes each comparison; made one at a time, so that memory holds one."""
    dtype, device = setting.dtype, setting.device
    if "experts" in operations:
        work = ExpertsWork(0, 0, sizes.hidden, sizes.width, dtype, device, "")
        dense = [replace(work, tokens=t, num_experts=e, mode=mode) for e in sizes.experts for t in sizes.tokens for mode in sizes.modes]
        most = sizes.experts[-1]
        frozen = [
            replace(work, tokens=t, num_experts=most, mode="frozen", stacks=kind) for kind in ("fp8", "nvfp4") for t in sizes.quantised
        ]
        yield from (partial(experts_comparison, work) for work in dense + frozen)
    tokens, num_experts = sizes.tokens[-1], sizes.experts[-1]
    if "routing" in operations:
        for backward in sizes.directions:
            # In fp32 on both sides: the peer's softmax of bf16 logits is another computation.
            yield partial(routing_comparison, Setting(torch.float32, device), tokens, num_experts, sizes.hidden, backward=backward)
        yield partial(sort_comparison, setting, tokens, num_experts)
    if "attention" in operations:
        equal = (sum(sizes.mixed) // 4,) * 4
        for kind, lengths in (("equal", equal), ("mixed lengths", sizes.mixed)):
            for backward in sizes.directions:
                yield partial(
                    attention_comparison,
                    setting,
                    lengths,
                    kind,
                    sizes.heads,
                    sizes.head_width,
                    backward=backward,
                    backends=("sdpa",) if device.type == "cpu" else ("flash", "flex", "sdpa"),
                )
    if "cross_entropy" in operations:
        for masked in sizes.masked:
            yield partial(loss_comparison, setting, tokens, sizes.hidden, sizes.vocabulary, masked=masked)


def run(sizes: Sizes, setting: Setting, plan: Plan, operations: tuple[str, ...]) -> list[Result]:
    """Measure and show one comparison after the other."""
    results = []
    for build in builders(sizes, setting, operations):
        try:
            result = measure(build(), plan)
        except torch.OutOfMemoryError as error:
            print(f"a case is left out, its inputs do not fit the device's memory: {error}")
            continue
        finally:
            gc.collect()
            if setting.device.type == "cuda":
                torch.cuda.empty_cache()
        report.show(result)
        results.append(result)
    return results


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default %(default)s")
    parser.add_argument("--quick", action="store_true", help="few cases, one round, no result file unless --out names one")
    parser.add_argument(
        "--tiny", action="store_true", help="every case of the CUDA run on toy sizes, no result file unless --out names one"
    )
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS), help="default: all")
    parser.add_argument("--rounds", type=int, help="timed rounds (default 9; on a device 21; quick and tiny 1)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads on a CPU (default %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON result (default benchmarks/results/operations.json, on a device gpu.json)")
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds: use 1 or more")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device here")
    return options


def main() -> None:
    """Measures, prints, writes."""
    options = arguments()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    device, on_device, short = torch.device(options.device), options.device == "cuda", options.quick or options.tiny
    sizes = TINY if options.tiny else RELEASE if on_device else QUICK if options.quick else SMALL
    if on_device and options.quick and not options.tiny:
        sizes = replace(RELEASE, tokens=(2048,), quantised=(2048,), directions=(True,), masked=(0.5,))
    rounds = options.rounds or (1 if short else 21 if on_device else 9)
    plan = Plan(device, rounds, sample_seconds=0.001 if short else 0.1, most_seconds=1.0 if short else 20.0)
    results = run(sizes, Setting(torch.bfloat16 if on_device else torch.float32, device), plan, tuple(options.operations))
    out = options.out or (None if short else support.RESULTS / ("gpu.json" if on_device else "operations.json"))
    if out is not None:
        for path in report.write(results, plan, " ".join(["python benchmarks/operations.py", *sys.argv[1:]]), out):
            print(f"written: {path}")


if __name__ == "__main__":
    main()
