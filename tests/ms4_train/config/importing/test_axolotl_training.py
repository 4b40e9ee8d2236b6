"""Optimizer, schedule, evaluation and saving, FSDP and W&B."""

from __future__ import annotations

import pytest

from ms4_train.config.importing.axolotl_data import translate_data
from ms4_train.config.importing.axolotl_training import translate_parallel, translate_tracking, translate_training
from ms4_train.config.importing.draft import Draft
from ms4_train.config.nodes import to_document
from ms4_train.config.schema import ParallelSection, TrackingSection, TrainingSection
from ms4_train.untrusted import parse_yaml

SECTIONS = {"training": TrainingSection, "parallel": ParallelSection, "tracking": TrackingSection}


def draft_of(text):
    draft = Draft(to_document(parse_yaml(text), file="a.yml"))
    for part in (translate_data, translate_training, translate_parallel, translate_tracking):
        part(draft)
    for name, section in SECTIONS.items():
        if name in draft.run:
            section.model_validate(draft.run[name])
    return draft


def words(draft):
    return " ".join([*(f"{entry.source}: {entry.words}" for entry in draft.entries), *draft.warnings])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("num_epochs: 3\nmicro_batch_size: 2", {"num_train_epochs": 3, "per_device_train_batch_size": 2}),
        ("gradient_accumulation_steps: 8\nlogging_steps: 2", {"gradient_accumulation_steps": 8, "logging_steps": 2}),
        ("adam_beta2: 0.95\nadam_epsilon: 1e-6\nmax_grad_norm: 0.5", {"adam_beta2": 0.95, "adam_epsilon": 1e-6, "max_grad_norm": 0.5}),
        ("lr_scheduler: constant_with_warmup\nwarmup_steps: 5", {"lr_scheduler_type": "constant", "warmup_steps": 5}),
        ("lr_scheduler: cosine\ncosine_min_lr_ratio: 0.1", {"lr_scheduler_type": "cosine_with_min_lr", "min_lr_ratio": 0.1}),
        ("lr_scheduler: one_cycle", {"lr_scheduler_type": "cosine"}),
        ("gradient_checkpointing: offload", {"gradient_checkpointing": True}),
        ("gradient_checkpointing: yes", {"gradient_checkpointing": True}),
        ("save_steps: 50\nsave_strategy: steps\nsave_total_limit: 3", {"save_strategy": "steps", "save_steps": 50, "save_total_limit": 3}),
        ("saves_per_epoch: 0", {"save_strategy": "no"}),
        ("saves_per_epoch: 4", {"save_strategy": "epoch"}),
        ("save_steps: 0.25", {"save_strategy": "epoch"}),
        ("evals_per_epoch: 1", {}),
        ("evals_per_epoch: 1\nval_set_size: 0.1", {"eval_strategy": "epoch"}),
        ("eval_steps: 20\nval_set_size: 0.1", {"eval_strategy": "steps", "eval_steps": 20}),
        ("eval_strategy: 'no'\nval_set_size: 0.1", {"eval_strategy": "no"}),
    ],
)
def test_training_section(text, expected):
    assert draft_of(text).run.get("training", {}) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optimizer: adamw_bnb_8bit", "12 bytes per trained parameter"),
        ("optimizer: adamw_torch_fused", "AdamW with fp32 weights"),
        ("optimizer: muon", "muon is not AdamW"),
        ("lr_scheduler: one_cycle", "cosine takes its place"),
        ("evals_per_epoch: 1", "no rows to validate on"),
        ("saves_per_epoch: 4", "4 became once per epoch"),
        ("context_parallel_size: 4", "not offered here"),
        ("deepspeed: my.json", "says no ZeRO stage"),
        ("fsdp_config: {offload_params: true}", "parameters stay on the devices here"),
    ],
)
def test_what_differs_is_said(text, said):
    assert said in words(draft_of(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fsdp_version: 2\nfsdp_config: {reshard_after_forward: true}", {"zero_stage": 3}),
        ("fsdp_version: 2\nfsdp_config: {reshard_after_forward: false}", {"zero_stage": 2}),
        ("fsdp: [full_shard]", {"zero_stage": 3}),
        ("deepspeed: deepspeed_configs/zero1.json", {"zero_stage": 1}),
        ("deepspeed: zero3_bf16.json\nexpert_parallel_size: 8", {"zero_stage": 3, "expert_parallel_size": 8}),
        ("seed: 3", None),
    ],
)
def test_parallel_section(text, expected):
    assert draft_of(text).run.get("parallel") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wandb_project: p\nwandb_name: n\nwandb_entity: e", {"project": "p", "name": "n", "entity": "e", "mode": "online"}),
        ("wandb_project: p\nwandb_mode: offline", {"project": "p", "mode": "offline"}),
        ("wandb_project:", None),
    ],
)
def test_tracking_section(text, expected):
    assert draft_of(text).run.get("tracking", {}).get("wandb") == expected
