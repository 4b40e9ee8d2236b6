"""axolotl's four examples for this model: every key accounted for, the values that matter, and what the report must say."""

from __future__ import annotations

import pytest
from support.axolotl_files import EXPERTS, NAMES, TEXTS, write_axolotl

from ms4_train.config import load_run
from ms4_train.config.importing.axolotl import import_axolotl
from ms4_train.config.importing.report import commented_yaml, report
from ms4_train.config.nodes import to_document
from ms4_train.errors import ConfigError
from ms4_train.untrusted import parse_yaml


def translated(tmp_path, name, extra=""):
    """(draft, run that is loaded from the written file)."""
    draft = import_axolotl(write_axolotl(tmp_path, name, extra))
    out = tmp_path / "run.yaml"
    out.write_text(commented_yaml(draft))
    return draft, load_run(out)


@pytest.mark.parametrize("extra", ["", "unknown_thing: 1\nlora_weird: x\n"])
@pytest.mark.parametrize("name", NAMES)
def test_every_key_has_its_entry(tmp_path, name, extra):
    draft, _ = translated(tmp_path, name, extra)
    values = to_document(parse_yaml(TEXTS[name] + extra)).values
    assert [key for key in values if not draft.is_named(key)] == []
    sources = {part for entry in draft.entries for part in entry.source.split(", ")}
    assert {f"fsdp_config.{key}" for key in values.get("fsdp_config", {})} <= sources
    assert {f"datasets.0.{key}" for key in values["datasets"][0]} <= sources
    assert {f"plugins.{index}" for index in range(len(values["plugins"]))} <= sources
    assert all(entry.words for entry in draft.entries)


@pytest.mark.parametrize("name", NAMES)
def test_common_values(tmp_path, name):
    _, run = translated(tmp_path, name)
    training, data = run.training, run.data
    assert (data.max_length, data.validation_fraction, data.packing, data.overlong_rows) == (2048, 0.01, name.endswith("text"), "skip")
    assert (training.lr_scheduler_type, training.warmup_ratio, training.weight_decay, training.num_train_epochs) == ("cosine", 0.1, 0.0, 1)
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps, training.logging_steps) == (1, 1, 1)
    assert (training.eval_strategy, training.save_strategy, training.gradient_checkpointing) == ("epoch", "epoch", True)
    assert training.learning_rate == (2e-4 if name.startswith("qlora") else 2e-5)
    assert (run.output_dir, run.model.dtype, run.tracking.wandb.mode) == ("./outputs/out", "bfloat16", "disabled")


@pytest.mark.parametrize("name", NAMES[:2])
def test_adapter_examples(tmp_path, name):
    draft, run = translated(tmp_path, name)
    assert (run.model.path, run.model.dequantize) == ("models/Mistral-Small-4-119B-2603-NVFP4", False)
    adapter = run.adapter
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (32, 16, 0.05)
    assert (adapter.target_modules, adapter.target_parameters) == (["self_attn.o_proj"], [])
    text = " ".join(report(draft).split())
    assert "matches self_attn.o_proj among the projections of attention: 36 of 180 modules" in text
    for name_of_module in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"):
        assert f"self_attn.{name_of_module}" in text
    assert "nor shared_experts.gate_proj/up_proj/down_proj" in text
    assert "carry no adapter in the original" in text
    assert "#   preset: attention+experts" in commented_yaml(draft)


def test_the_proposed_line_is_a_valid_adapter(tmp_path):
    draft, _ = translated(tmp_path, "qlora-text")
    lines = [line for line in commented_yaml(draft).splitlines() if "target_modules" not in line and "- self_attn.o_proj" not in line]
    changed = "\n".join(lines).replace("#   preset:", "preset:").replace("lora_dropout: 0.05", "lora_dropout: 0.0")
    (tmp_path / "changed.yaml").write_text(changed)
    assert "self_attn.o_proj" in load_run(tmp_path / "changed.yaml").adapter.target_modules


def test_experts_that_stand_commented_in_the_examples(tmp_path):
    """Uncommented, the original is refused by PEFT for its dropout."""
    draft, run = translated(tmp_path, "qlora-text", EXPERTS)
    assert run.adapter.target_parameters == ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    assert run.adapter.lora_dropout == 0.0
    assert "does not start; it is 0 here" in " ".join(report(draft).split())
    assert "carry no adapter" not in report(draft)


@pytest.mark.parametrize(("name", "vision"), [("fft-text", "skip"), ("fft-vision", "auto")])
def test_full_examples(tmp_path, name, vision):
    draft, run = translated(tmp_path, name)
    assert (run.adapter, run.parallel.zero_stage, run.model.vision) == (None, 3, vision)
    assert run.training.train_router  # as in the original, and said
    assert "Consider training.train_router: false" in " ".join(report(draft).split())
    assert run.model.path == "models/Mistral-Small-4-119B-2603-BF16"


@pytest.mark.parametrize("name", NAMES)
def test_what_differs_in_the_loss_is_said(tmp_path, name):
    text = " ".join(report(translated(tmp_path, name)[0]).split())
    assert ("packed documents appear to see each other" in text) == name.endswith("text")
    assert ("assistant turns alone carry loss" in text) == name.endswith("vision")
    assert "Rows longer than sequence_len are left out without a word" in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rl: dpo\nbase_model: a/b\n", ["2", "rl", "only supervised"]),
        ("datasets: [{path: x}]\n", ["base_model", "missing"]),
        ("base_model: a/b\n", ["data.train", "missing", "translation of"]),
        ("base_model: a/b\nlearning_rate: fast\ndatasets: [{path: x}]\n", [":2: learning_rate", "is not a number"]),
        ("base_model: a/b\nlearning_rate: -1\ndatasets: [{path: x}]\n", ["training.learning_rate", "out of range"]),
        ("base_model: a/b\nadapter: ia3\n", [":2: adapter", "lora, qlora or nothing"]),
        ("base_model: &x a/b\n", ["anchors"]),
        ("base_model: a/b\nadapter: lora\nlora_target_modules: '('\n", ["lora_target_modules", "not a regular expression"]),
        ("base_model: a/b\nadapter: lora\nlora_target_modules: [query]\ndatasets: [{path: x}]\n", [":3: lora_target_modules", "q_a_proj"]),
        ("- a\n", ["keys and values"]),
    ],
)
def test_faults_are_typed_errors_with_a_fix(tmp_path, text, words):
    path = tmp_path / "bad.yml"
    path.write_text(("adapter:\n" if text.startswith("rl") else "") + text)
    with pytest.raises(ConfigError) as caught:
        import_axolotl(path)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "Fix:" in str(caught.value)
