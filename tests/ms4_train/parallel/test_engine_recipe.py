"""The whole program on two ranks under torchrun, and the same run in one process: ``ms4 train`` as a user starts it.

Two ranks with one row each see the same rows per step as one process that accumulates two, so losses must agree; and a checkpoint of two
ranks goes on in one process. Tolerances allow for fp32 sums in another order.
"""

import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import saved_tiny
from support.distributed import run_torchrun
from support.models import tiny_config
from support.rows import chat
from support.tokenizers import tiny_tokenizer, tokenizer_file

from ms4_recipes import sft
from ms4_train.config import load_run

STEPS = 4
LOSS_TOLERANCE = 1e-5
WEIGHT_TOLERANCE = 1e-4  # weights moved by 2.5e-3 each; Adam turns rounding of small gradients into up to 1e-5 here
RUN = """
recipe: sft
output_dir: {output}
model: {{path: {model}, tokenizer: {tokenizer}, dtype: float32}}
data:
  train: [{{path: {rows}}}]
  validation: [{{path: {validation}}}]
  max_length: 96
training:
  max_steps: {steps}
  learning_rate: 1.0e-3
  save_steps: 2
  save_total_limit: 5
  eval_strategy: steps
  eval_steps: 2
  gradient_accumulation_steps: 1
parallel: {{expert_parallel_size: 1}}
tracking: {{console: false, peak_flops: 1.0e+12}}
"""
ADAPTER = """
adapter:
  r: 4
  lora_alpha: 8
  target_modules: [q_a_proj, q_b_proj, kv_a_proj_with_mqa, kv_b_proj, o_proj]
  target_parameters: [mlp.experts.gate_up_proj, mlp.experts.down_proj]
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny model, rows of different lengths, an odd number of validation rows, and the run files."""
    folder = tmp_path_factory.mktemp("recipe")
    config = tiny_config(vocab_size=tiny_tokenizer().vocab_size, hidden_size=32, moe_intermediate_size=16)
    saved_tiny(folder / "model", config)
    random.seed(4)
    for name, count in (("rows", 60), ("validation", 7)):
        rows = [chat(f"{name} {i}?", " ".join(str(random.randrange(99)) for _ in range(random.randrange(2, 9)))) for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, extra in (("full", ""), ("lora", ADAPTER)):
        places = {key: folder / value for key, value in {"model": "model", "rows": "rows.jsonl", "validation": "validation.jsonl"}.items()}
        text = RUN.format(output=folder / "unused", tokenizer=tokenizer_file(400), steps=STEPS, **places)
        (folder / f"{name}.yaml").write_text(text + extra)
    return folder


@pytest.fixture(autouse=True)
def _leave_torch_as_it_was():
    yield
    torch.use_deterministic_algorithms(False)


def _two_ranks(files, name, output, *, stage=2):
    overrides = [f"output_dir={output}", "parallel.expert_parallel_size=2", f"parallel.zero_stage={stage}", "training.loss_chunk_tokens=16"]
    return run_torchrun("-m", "ms4_train.cli", "train", str(files / f"{name}.yaml"), *overrides)


def _one_process(files, name, output):
    return sft.run(load_run(files / f"{name}.yaml", [f"output_dir={output}", "training.gradient_accumulation_steps=2"]))


def _metrics(output, key):
    """{step: value} of the lines that have it; of a step that was logged twice, the later."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line and "step" in line}


def _forget_after(output, step):
    """As if the run had been killed before its later checkpoints."""
    for folder in (output / "checkpoints").iterdir():
        if int(folder.name.rsplit("-", 1)[-1]) > step:
            shutil.rmtree(folder)
    for name in ("model", "adapter"):
        shutil.rmtree(output / name, ignore_errors=True)


@pytest.mark.parametrize("name", [pytest.param("full", marks=pytest.mark.slow), "lora"])
def test_two_ranks_then_one(files, name):
    two, resumed, one = (files / f"{name}-{suffix}" for suffix in ("two", "resumed", "one"))
    _two_ranks(files, name, two)
    shutil.copytree(two, resumed)
    _forget_after(resumed, 2)
    _one_process(files, name, resumed)
    _one_process(files, name, one)
    losses = _metrics(one, "loss")
    assert sorted(losses) == [1, 2, 3, 4]
    assert _metrics(two, "loss") == pytest.approx(losses, abs=LOSS_TOLERANCE)
    assert _metrics(resumed, "loss") == pytest.approx(losses, abs=LOSS_TOLERANCE)
    for key, tolerance in (("grad_norm", 1e-4), ("eval_loss", 1e-5)):
        assert _metrics(two, key) == pytest.approx(_metrics(one, key), rel=tolerance)
    # What left for experts of the other rank came back from there, in both passes; alone nothing leaves.
    there, back = (_metrics(two, f"expert_bytes_{kind}") for kind in ("dispatch", "combine"))
    assert there == back
    assert sorted(there) == [1, 2, 3, 4]
    assert min(there.values()) > min(_metrics(two, "expert_bytes_metadata").values()) > 0
    assert _metrics(one, "expert_bytes_dispatch") == {}
    folder = "model" if name == "full" else "adapter"
    weights = [next((output / folder).glob("*.safetensors")) for output in (two, resumed, one)]
    first, second, expected = (load_file(path) for path in weights)
    assert first.keys() == second.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(first[key], value, rtol=0, atol=WEIGHT_TOLERANCE)
        torch.testing.assert_close(second[key], value, rtol=0, atol=WEIGHT_TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "lora"])
def test_zero_3_with_a_chunked_loss(files, name):
    """Ranks have different numbers of chunks of tokens with loss; the head's weight is gathered once all the same."""
    two, one = files / f"{name}-zero3", files / f"{name}-zero3-one"
    _two_ranks(files, name, two, stage=3)
    _one_process(files, name, one)
    assert _metrics(two, "loss") == pytest.approx(_metrics(one, "loss"), abs=LOSS_TOLERANCE)
