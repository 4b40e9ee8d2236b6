"""Evaluation beside training on two ranks that share the experts: the samples, metrics and best model of one process."""

from __future__ import annotations

import json
import sqlite3

import pytest
from support.distributed import ROOT, run_ranks
from support.sft_files import metrics, sft_run, write_files

from ms4_recipes import sft
from ms4_train.config import to_yaml

pytestmark = pytest.mark.slow
ADAPTER = {"r": 4, "target_modules": ["q_b_proj", "o_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]}
EVALUATION = {
    "steps": 2,
    "tasks": [{"task": "arithmetic", "problems": 3, "samples": 2}],
    "modes": {"none": {"temperature": 0.0, "max_tokens": 6}, "high": {"temperature": 0.7, "max_tokens": 12}},
    "metric_for_best_model": "arithmetic_digits_6/none/total_chars",
}


def configuration(folder, output, *, ranks, stage=2, adapter=None, evaluation=EVALUATION):
    return sft_run(
        folder,
        output,
        adapter=adapter,
        evaluation=evaluation,
        training={"max_steps": 4, "per_device_train_batch_size": 2 // ranks, "lr_scheduler_type": "constant"},
        parallel={"expert_parallel_size": ranks, "zero_stage": stage},
        tracking={"console": False},
    )


def on_two_ranks(folder, output, *, check=True, **options):
    path = folder / f"{output}.yaml"
    path.write_text(to_yaml(configuration(folder, output, ranks=2, **options)))
    return run_ranks(ROOT / "ms4_train" / "cli" / "main.py", "train", str(path), check=check)


def samples(folder, output):
    """What was drawn, without the times it took."""
    with sqlite3.connect(folder / output / "results.sqlite") as store:
        columns = [row[1] for row in store.execute("pragma table_info(samples)")]
        wanted = [name for name in ("problem_id", "mode", "sample_index", "seed", "prompt_hash", "finish_reason") if name in columns]
        return sorted(store.execute(f"select {', '.join(wanted)} from samples").fetchall())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_files(tmp_path_factory.mktemp("ranks"))
    for output, options in {"two": {}, "zero3": {"stage": 3}, "lora": {"stage": 3, "adapter": ADAPTER}}.items():
        on_two_ranks(folder, output, **options)
    sft.run(configuration(folder, "one", ranks=1))
    sft.run(configuration(folder, "lora-one", ranks=1, adapter=ADAPTER))
    on_two_ranks(folder, "without", stage=3, evaluation=None)
    return folder


@pytest.mark.parametrize(("ranks", "one"), [("two", "one"), ("zero3", "one"), ("lora", "lora-one")])
def test_samples_metrics_and_best_model_are_those_of_one_process(folder, ranks, one):
    assert samples(folder, ranks) == samples(folder, one)
    assert len(samples(folder, ranks)) == 2 * 2 * 6
    for name in ("high/score", "none/score", "high/thinking_tokens", "none/answer_tokens"):
        key = f"eval/arithmetic_digits_6/{name}"
        assert metrics(folder, ranks, key=key) == metrics(folder, one, key=key), key
        assert list(metrics(folder, ranks, key=key)) == [2, 4]
    best = [json.loads((folder / output / "best" / "best.json").read_text()) for output in (ranks, one)]
    assert best[0] == best[1]
    kind = "adapter" if ranks == "lora" else "model"
    assert any((folder / ranks / "best" / kind).glob("*.safetensors"))


def test_training_goes_as_without_it(folder):
    """ZeRO 3, bit for bit."""
    assert metrics(folder, "zero3") == metrics(folder, "without")
    assert len(metrics(folder, "zero3")) == 4


def test_what_rank_0_refuses_ends_all_ranks(folder):
    """A task that there is not; the other rank has nothing to look at, and would wait forever."""
    bad = {**EVALUATION, "tasks": [{"task": "arithmetic", "kind": "nope"}]}
    main, other = on_two_ranks(folder, "bad", evaluation=bad, check=False)
    assert "nope" in main
    assert "Traceback" not in main + other
