"""axolotl's optimizer, schedule, evaluation, saving, FSDP and W&B -> ``training``, ``parallel``, ``tracking``.

Exercise it: ``pytest tests/ms4_train/config/importing/test_axolotl_training.py``.
"""

from __future__ import annotations

from ms4_train.config.importing.axolotl_data import holds_out
from ms4_train.config.importing.draft import Draft

_WHOLE = {
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "micro_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "max_steps": "max_steps",
    "warmup_steps": "warmup_steps",
    "logging_steps": "logging_steps",
    "save_total_limit": "save_total_limit",
}
_NUMBERS = {
    "num_epochs": "num_train_epochs",
    "learning_rate": "learning_rate",
    "warmup_ratio": "warmup_ratio",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "adam_beta1": "adam_beta1",
    "adam_beta2": "adam_beta2",
    "adam_epsilon": "adam_epsilon",
}
_SCHEDULES = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "cosine_with_min_lr": "cosine_with_min_lr",
    "warmup_stable_decay": "warmup_stable_decay",
}
_WANDB_MODES = ("disabled", "offline", "online")


def translate_training(draft: Draft) -> None:
    """Optimizer, schedule, and when the run is evaluated and saved."""
    for key, target in _NUMBERS.items():
        if (number := draft.number(key)) is not None:
            draft.put(key, ("training", target), number)
    for key, target in _WHOLE.items():
        if (whole := draft.whole(key)) is not None:
            draft.put(key, ("training", target), whole)
    if (seed := draft.whole("seed")) is not None:
        draft.put("seed", ("seed",), seed)
    _optimizer(draft)
    _schedule(draft)
    _checkpointing(draft)
    _events(draft, "eval", allowed=holds_out(draft))
    _events(draft, "save", allowed=True)
    if draft.text("resume_from_checkpoint") is not None:
        draft.drop("resume_from_checkpoint", "checkpoints of another program are not read; run state of ours is found by itself")


def _optimizer(draft: Draft) -> None:
    name = draft.text("optimizer")
    if name is None:
        return
    if "adamw" in name:
        why = "AdamW with fp32 weights and fp32 moments is the one optimizer"
        if "8bit" in name or "4bit" in name or "paged" in name:
            why += "; it takes 12 bytes per trained parameter beside the weights, where 8-bit moments take 2"
        draft.drop("optimizer", f"{name}: {why}")
    else:
        draft.drop("optimizer", f"{name}: AdamW is the one optimizer")
        draft.warn(f"optimizer: {name} is not AdamW; its learning_rate may be far off for AdamW.")


def _schedule(draft: Draft) -> None:
    name = draft.text("lr_scheduler")
    floor = draft.number("cosine_min_lr_ratio")
    if floor:
        draft.put("cosine_min_lr_ratio", ("training", "min_lr_ratio"), floor)
        if name in (None, "cosine"):
            name = "cosine_with_min_lr"
    if name is None:
        return
    if name in _SCHEDULES:
        draft.put("lr_scheduler", ("training", "lr_scheduler_type"), _SCHEDULES[name])
        return
    draft.put("lr_scheduler", ("training", "lr_scheduler_type"), "cosine", f"there is no {ascii(name)[1:-1][:30]} here")
    draft.warn(f"lr_scheduler: {ascii(name)[1:-1][:30]} is not among ours; cosine takes its place.")


def _checkpointing(draft: Draft) -> None:
    chosen = draft.value(("gradient_checkpointing",))
    if chosen is not None:
        on = bool(chosen) if isinstance(chosen, str) and chosen.startswith("offload") else draft.boolean("gradient_checkpointing")
        note = "kept on the device" if isinstance(chosen, str) and chosen.startswith("offload") else ""
        draft.put("gradient_checkpointing", ("training", "gradient_checkpointing"), bool(on), note)
    elif (chosen := draft.boolean("fsdp_config", "activation_checkpointing")) is not None:
        draft.put("fsdp_config.activation_checkpointing", ("training", "gradient_checkpointing"), chosen)


def _events(draft: Draft, kind: str, *, allowed: bool) -> None:
    """``evals_per_epoch``, ``eval_steps``, ``eval_strategy``, and the same for saving."""
    per_epoch, steps, strategy = f"{kind}s_per_epoch" if kind == "eval" else "saves_per_epoch", f"{kind}_steps", f"{kind}_strategy"
    target = ("training", strategy)
    given = [key for key in (per_epoch, steps, strategy) if draft.value((key,)) is not None]
    if not allowed:
        for key in given:
            draft.drop(key, "there are no rows to validate on")
        return
    if (times := draft.number(per_epoch)) is not None:
        if times <= 0:
            draft.put(per_epoch, target, "no")
            return
        draft.put(per_epoch, target, "epoch")
        if times != 1:
            draft.comment(target, f"The original does so {times:g} times per epoch; write steps and {steps} for that.")
            draft.warn(f"{per_epoch}: {times:g} became once per epoch; steps of an epoch are known once rows are packed.")
    elif (every := draft.number(steps)) is not None:
        if every >= 1:
            draft.put(f"{steps}, {strategy}" if strategy in given else steps, target, "steps")
            draft.put(steps, ("training", steps), int(every))
        else:
            draft.put(steps, target, "epoch", f"{every:g} is a share of the run there")
            draft.warn(f"{steps}: a share of the run became once per epoch.")
    elif (chosen := draft.text(strategy)) is not None:
        if chosen in ("no", "steps", "epoch"):
            draft.put(strategy, target, chosen)
        else:
            draft.drop(strategy, f"{ascii(chosen)[1:-1][:20]} is not among no, steps and epoch")


def translate_parallel(draft: Draft) -> None:
    """FSDP and DeepSpeed settings -> ZeRO stage; expert parallelism."""
    if (size := draft.whole("expert_parallel_size")) is not None:
        draft.put("expert_parallel_size", ("parallel", "expert_parallel_size"), size)
    for key in ("context_parallel_size", "tensor_parallel_size", "sequence_parallel_degree"):
        if (size := draft.whole(key)) is not None:
            draft.drop(key, "not offered here")
            if size > 1:
                draft.warn(f"{key}: {size} there; not offered here, so that long rows need more memory per device.")
    _fsdp(draft)
    deepspeed = draft.text("deepspeed")
    if deepspeed is not None:
        stage = next((number for number in (3, 2, 1) if f"zero{number}" in deepspeed.lower().replace("_", "").replace("-", "")), None)
        if stage is None:
            draft.drop("deepspeed", "the file's name says no ZeRO stage; parallel.zero_stage takes it")
        else:
            draft.put("deepspeed", ("parallel", "zero_stage"), stage, "the stage alone; the rest of the file is not read")


def _fsdp(draft: Draft) -> None:
    settings = draft.section("fsdp_config")
    if not settings and draft.value(("fsdp_version",)) is None and not draft.value(("fsdp",)):
        return
    reshard = draft.boolean("fsdp_config", "reshard_after_forward")
    source = "fsdp_config.reshard_after_forward" if reshard is not None else "fsdp_version" if draft.value(("fsdp_version",)) else "fsdp"
    draft.put(source, ("parallel", "zero_stage"), 2 if reshard is False else 3, "DeepSpeed's ZeRO does what FSDP does")
    experts = draft.run.get("parallel", {}).get("expert_parallel_size")
    if experts is None:
        draft.comment(
            ("parallel",),
            "With several GPUs, expert_parallel_size spreads the routed experts, 97 % of the parameters, and sends tokens to them; "
            "ZeRO 3 alone gathers every layer's experts on every GPU.",
        )
    reasons = {
        "offload_params": "false: nothing is offloaded here",
        "cpu_ram_efficient_loading": "every rank reads from the files what it holds, and no more",
        "state_dict_type": "results are written whole, run state per parameter",
        "auto_wrap_policy": "ZeRO needs no wrapping",
        "transformer_layer_cls_to_wrap": "ZeRO needs no wrapping",
    }
    for key, value in settings.items():
        if key in ("reshard_after_forward", "activation_checkpointing"):
            continue
        draft.drop(f"fsdp_config.{key}", reasons.get(key, "has no counterpart in ZeRO"))
        if key == "offload_params" and value:
            draft.warn("fsdp_config.offload_params: parameters stay on the devices here.")
    if "activation_checkpointing" in settings and draft.value(("gradient_checkpointing",)) is not None:
        draft.drop("fsdp_config.activation_checkpointing", "gradient_checkpointing decides")
    for key in ("fsdp_version", "fsdp"):
        if draft.value((key,)) is not None and key != source:
            draft.drop(key, "parallel.zero_stage decides")


def translate_tracking(draft: Draft) -> None:
    """Weights & Biases. axolotl turns it on where a project is named."""
    for key, target in (("wandb_project", "project"), ("wandb_entity", "entity"), ("wandb_name", "name")):
        if (name := draft.text(key)) is not None:
            draft.put(key, ("tracking", "wandb", target), name)
    mode = draft.text("wandb_mode")
    if mode in _WANDB_MODES:
        draft.put("wandb_mode", ("tracking", "wandb", "mode"), mode)
    elif draft.text("wandb_project") is not None:
        draft.put("wandb_project", ("tracking", "wandb", "mode"), "online")
