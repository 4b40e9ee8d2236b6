"""Supervised fine-tuning: its trajectory against transformers and plain PyTorch, its options against each other, what it refuses."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from support.models import hf_twin
from support.sft_files import TINY_RANKS, metrics, sft_run, write_files
from support.tokenizers import tiny_tokenizer
from transformers.optimization import get_cosine_schedule_with_warmup

from ms4_recipes import sft
from ms4_train.adapters import load_adapter
from ms4_train.data import build_eval_batches, build_loader
from ms4_train.errors import AdapterError, CheckpointError, ConfigError, DataError, MS4Error, StorageError, TrainingError
from ms4_train.weights import load_model, save_model

TARGETS = {"target_modules": ["q_b_proj", "o_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("sft"))


def weights(folder, output="out"):
    return load_file(folder / output / "model" / "model.safetensors")


def their_trajectory(config, steps):
    """The same run written plainly: transformers' model, one document at a time, torch's loss, optimizer and clipping."""
    oracle = hf_twin(load_model(config.model.path, dtype=torch.float32)).train()
    section = config.training
    parameters = list(oracle.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": section.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=section.learning_rate)
    scheduler = get_cosine_schedule_with_warmup(optimizer, section.warmup_steps, steps)
    batches = iter(build_loader(config.data, tiny_tokenizer(TINY_RANKS), batch_size=1, seed=config.seed))
    losses, norms = [], []
    for _ in range(steps):
        micro_batches = [next(batches) for _ in range(section.gradient_accumulation_steps)]
        trained = sum(batch.num_trained for batch in micro_batches)
        total = 0.0
        for batch in micro_batches:
            inputs, targets = batch.input_ids_t.split(list(batch.lengths)), batch.target_ids_t.split(list(batch.lengths))
            for document, target in zip(inputs, targets, strict=True):
                logits = oracle(input_ids=document[None]).logits[0]
                loss = torch.nn.functional.cross_entropy(logits, target, ignore_index=-100, reduction="sum") / trained
                loss.backward()
                total += float(loss.detach())
        losses.append(total)
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, section.max_grad_norm)))
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return losses, norms, {name: parameter.detach() for name, parameter in oracle.named_parameters()}


def test_trajectory_equals_transformers_and_plain_torch(folder):
    training = {"max_steps": 6, "gradient_accumulation_steps": 2, "warmup_steps": 2, "max_grad_norm": 0.5, "train_router": True}
    config = sft_run(folder, "parity", training=training)
    sft.run(config)
    losses, norms, theirs = their_trajectory(config, 6)
    # fp32; the two differ in the order of sums, and the optimizer carries the difference on.
    assert list(metrics(folder, "parity").values()) == pytest.approx(losses, rel=1e-4)
    assert list(metrics(folder, "parity", "grad_norm").values()) == pytest.approx(norms, rel=1e-3)
    assert losses[-1] < losses[0] - 0.1
    for name, tensor in weights(folder, "parity").items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=2e-4, msg=name)


@pytest.fixture(scope="module")
def plain(folder):
    sft.run(sft_run(folder, "plain"))
    return metrics(folder, "plain")


@pytest.mark.parametrize(
    ("name", "changes", "tolerance"),
    [
        ("checkpointing", {"gradient_checkpointing": True}, 0.0),  # the same arithmetic again
        ("experts again", {"recompute_experts": True}, 0.0),
        ("chunks", {"loss_chunk_tokens": 7}, 1e-5),  # another order of sums
        ("bf16", None, 2e-2),  # 8 bits of mantissa through two layers
    ],
)
def test_options_that_should_not_change_the_loss(folder, plain, name, changes, tolerance):
    sft.run(sft_run(folder, name, training=changes) if changes else sft_run(folder, name, model={"dtype": "bfloat16"}))
    assert list(metrics(folder, name).values()) == pytest.approx(list(plain.values()), rel=tolerance)
    if name == "bf16":
        assert {tensor.dtype for tensor in weights(folder, name).values()} == {torch.bfloat16}


def test_accumulation_equals_a_larger_batch(folder):
    sft.run(sft_run(folder, "wide", training={"per_device_train_batch_size": 2, "max_steps": 3}))
    sft.run(sft_run(folder, "deep", training={"gradient_accumulation_steps": 2, "max_steps": 3}))
    assert list(metrics(folder, "wide").values()) == pytest.approx(list(metrics(folder, "deep").values()), rel=1e-5)


def test_validation_loss_is_that_of_the_exported_model(folder):
    config = sft_run(
        folder, "valid", data={"validation_fraction": 0.2}, training={"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2}
    )
    sft.run(config)
    logged = metrics(folder, "valid", "eval_loss")
    assert list(logged) == [2, 4]
    oracle = hf_twin(load_model(folder / "valid" / "model", dtype=torch.float32))
    total = count = 0
    with torch.no_grad():
        for batch in build_eval_batches(config.data, tiny_tokenizer(TINY_RANKS), batch_size=1):
            inputs, targets = batch.input_ids_t.split(list(batch.lengths)), batch.target_ids_t.split(list(batch.lengths))
            for document, target in zip(inputs, targets, strict=True):
                logits = oracle(input_ids=document[None]).logits[0]
                total += float(torch.nn.functional.cross_entropy(logits, target, ignore_index=-100, reduction="sum"))
                count += int((target != -100).sum())
    assert logged[4] == pytest.approx(total / count, rel=1e-4)


def test_lora_trains_only_the_adapter_and_can_be_gone_on_with(folder):
    adapter = {"r": 4, "lora_alpha": 8, **TARGETS}
    first = sft.run(sft_run(folder, "lora", adapter=adapter, training={"learning_rate": 2e-2}))
    assert first == folder / "lora" / "adapter"
    losses = list(metrics(folder, "lora").values())
    assert losses[-1] < losses[0] - 0.1
    second = sft.run(sft_run(folder, "lora2", adapter={"init_from": str(first)}, training={"max_steps": 1, "learning_rate": 1e-12}))
    left, right = (load_file(path / "adapter_model.safetensors") for path in (first, second))
    assert left.keys() == right.keys()
    assert all(torch.allclose(left[name], right[name], atol=1e-9) for name in left)
    model = load_model(folder / "base", dtype=torch.float32)
    assert load_adapter(model, second, base_fingerprint=None).r == 4


@pytest.mark.parametrize("train_router", [False, True])
def test_routers_stay_as_they_are_unless_asked_for(folder, train_router):
    sft.run(sft_run(folder, f"router-{train_router}", training={"max_steps": 2} | ({"train_router": True} if train_router else {})))
    before, after = load_file(folder / "base" / "model.safetensors"), weights(folder, f"router-{train_router}")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if train_router or not name.endswith("mlp.gate.weight")}


def test_router_losses_are_logged_beside_the_main_one(folder):
    coefficients = {"router_aux_loss_coef": 0.5, "router_z_loss_coef": 0.1}
    sft.run(sft_run(folder, "losses", training={"train_router": True, **coefficients}))
    balance, squared = (list(metrics(folder, "losses", key).values()) for key in ("router_aux_loss", "router_z_loss"))
    assert len(balance) == len(squared) == 6
    assert squared[-1] < squared[0]
    adapter = {"target_modules": ["layers.1.mlp.shared_experts.up_proj"]}
    in_vain = sft_run(folder, "in vain", adapter=adapter, training={"router_z_loss_coef": 0.1})
    with pytest.raises(ConfigError, match="router_z_loss_coef: the loss would change nothing"):
        sft.run(in_vain, dry_run=True)


def test_dry_run_says_what_would_be_trained_and_writes_nothing(folder, capsys):
    config = sft_run(folder, "dry", adapter={"r": 4, **TARGETS})
    assert sft.run(config, dry_run=True) == folder / "dry"
    shown = capsys.readouterr().out
    assert "q_b_proj                  2 modules" in shown
    assert "carry loss (" in shown
    assert "6 steps" in shown
    assert not (folder / "dry").exists()


def test_metrics_of_every_step(folder, plain):
    line = json.loads((folder / "plain" / "metrics.jsonl").read_text().splitlines()[0])
    assert line.keys() == {
        *("step", "loss", "learning_rate", "grad_norm", "tokens_per_second"),
        *("mfu", "router_max_over_mean", "dead_experts", "epoch"),
    }
    assert list(plain) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"adapter": {"target_modules": ["q_c_proj"]}}, AdapterError, "q_[ab]_proj"),
        ({"adapter": {"r": 2}, "training": {"train_router": True}}, ConfigError, "train_router"),
        ({"training": {"eval_strategy": "steps"}}, ConfigError, "eval_strategy"),
        ({"data": {"train": [{"path": "{folder}/thinking.jsonl"}], "train_on_thinking": False}}, DataError, "carries loss|empty"),
        ({"data": {"train": [{"path": "{folder}/absent.jsonl"}]}}, MS4Error, "absent.jsonl"),
        ({"model": {"path": "{folder}/absent"}}, MS4Error, "absent"),
        ({"model": {"adapter": "x"}}, ConfigError, "model.adapter"),
        ({"data": {"max_length": 12}}, DataError, "overlong"),
        ({"parallel": {"expert_parallel_size": 2}}, MS4Error, "expert_parallel_size"),
        ({"model": {"path": "{folder}/tokenizer_only"}, "training": {"eval_strategy": "steps"}}, ConfigError, "eval_strategy"),
    ],
)
def test_refusals_come_before_the_first_step(folder, changes, error, message):
    row = {"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "", "reasoning_content": "2"}]}
    (folder / "thinking.jsonl").write_text(json.dumps({**row, "reasoning_effort": "high"}) + "\n")
    for name in ("config.json", "tekken.json"):  # a model without weights: what is refused there is refused before they are read
        (folder / "tokenizer_only").mkdir(exist_ok=True)
        shutil.copy(folder / "base" / name, folder / "tokenizer_only" / name)
    filled = json.loads(json.dumps(changes).replace("{folder}", str(folder)))
    with pytest.raises(error, match=message):
        sft.run(sft_run(folder, "refused", **filled))
    assert not (folder / "refused" / "metrics.jsonl").exists()


def test_streams_need_a_number_of_steps(folder):
    source = {"path": str(folder / "a.jsonl"), "streaming": True}
    with pytest.raises(ConfigError, match="max_steps"):
        sft.run(sft_run(folder, "stream", data={"train": [source]}, training={"max_steps": -1}))
    sft.run(sft_run(folder, "stream", data={"train": [source]}, training={"max_steps": 2}))
    assert list(metrics(folder, "stream")) == [1, 2]


def test_a_refused_resume_leaves_the_run_s_own_checkpoints_in_place(folder):
    """Naming another run's checkpoint by mistake must not cost this run its own later ones."""
    saving = {"save_strategy": "steps", "save_steps": 2}
    sft.run(sft_run(folder, "mine", training={**saving, "max_steps": 4}))
    sft.run(sft_run(folder, "theirs", training={**saving, "max_steps": 2}, data={"max_length": 128}))
    theirs = str(folder / "theirs" / "checkpoints" / "step-000002")
    with pytest.raises(CheckpointError, match="another run"):
        sft.run(sft_run(folder, "mine", training={**saving, "max_steps": 6, "resume_from_checkpoint": theirs}))
    assert sorted(path.name for path in (folder / "mine" / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    sft.run(sft_run(folder, "mine", training={**saving, "max_steps": 6, "resume_from_checkpoint": "never"}))
    names = {path.name for path in (folder / "mine" / "checkpoints").iterdir()}
    assert names == {"step-000002.superseded", "step-000004.superseded", "step-000004", "step-000006"}


def test_a_run_shorter_than_an_epoch_is_validated_at_its_end(folder):
    changes = {"data": {"validation_fraction": 0.2}, "training": {"max_steps": 2, "eval_strategy": "epoch"}}
    sft.run(sft_run(folder, "short", **changes))
    assert list(metrics(folder, "short", "eval_loss")) == [2]


def test_epochs_become_steps(folder):
    sft.run(sft_run(folder, "epochs", training={"max_steps": -1, "num_train_epochs": 0.5, "save_strategy": "epoch"}))
    epochs = metrics(folder, "epochs", "epoch")
    assert epochs[max(epochs)] == pytest.approx(0.5, abs=0.2)  # a step is the smallest share there is
    assert [epochs[step] / step for step in epochs] == pytest.approx([epochs[1]] * len(epochs))
    assert (folder / "epochs" / "checkpoints").is_dir()


def test_a_longer_run_goes_on_and_a_finished_one_only_writes_its_result(folder):
    section = {"save_strategy": "steps", "lr_scheduler_type": "constant"}
    sft.run(sft_run(folder, "long", training={**section, "max_steps": 6}))
    sft.run(sft_run(folder, "grown", training={**section, "max_steps": 3}))
    longer = sft_run(folder, "grown", training={**section, "max_steps": 6, "save_steps": 2})
    sft.run(longer)
    assert metrics(folder, "grown") == metrics(folder, "long")
    left, right = weights(folder, "grown"), weights(folder, "long")
    assert all(torch.equal(left[name], right[name]) for name in right)
    written = (folder / "grown" / "metrics.jsonl").read_bytes()
    shutil.rmtree(folder / "grown" / "model")
    sft.run(longer)
    assert (folder / "grown" / "metrics.jsonl").read_bytes() == written
    left = weights(folder, "grown")
    assert all(torch.equal(left[name], right[name]) for name in right)


def test_non_finite_loss_stops_before_the_weights_change(folder, tmp_path):
    model = load_model(folder / "base", dtype=torch.float32)
    state = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    state["lm_head.weight"][5] = float("inf")
    tokenizer = tiny_tokenizer(TINY_RANKS)
    save_model(state, tmp_path / "base", config=model.config, tokenizer_file=tokenizer.path)
    config = sft_run(folder, "nan", model={"path": str(tmp_path / "base")}, training={"save_strategy": "steps"})
    with pytest.raises(TrainingError, match=r"loss of step 1 is (nan|inf).*a.jsonl"):
        sft.run(config)
    assert not list((folder / "nan" / "checkpoints").glob("*"))


def test_too_little_space_is_refused_before_the_first_step(folder, monkeypatch):
    monkeypatch.setattr("ms4_train.storage.free_bytes", lambda path: 1000)
    with pytest.raises(StorageError, match="1,000 bytes are free"):
        sft.run(sft_run(folder, "space", training={"save_strategy": "steps"}))
    assert not (folder / "space" / "metrics.jsonl").exists()
