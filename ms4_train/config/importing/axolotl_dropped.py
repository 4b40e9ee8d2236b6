"""The keys of axolotl's that have no place in a run file of ours, each with its reason; and all others, by name.

Exercise it: ``pytest tests/ms4_train/config/importing/test_axolotl_dropped.py``.
"""

from __future__ import annotations

import difflib
from typing import Any

from ms4_train.config.importing.draft import Draft

_KERNELS = "kernels are chosen by device; `ms4 train` prints which ones run"
_CHAT = "chat goes through mistral-common, with the release's own tokens"
_LOADING = "rows are read, tokenised and packed at the start of every run; nothing is kept on disk"
_BUILT_IN = "always so here"

REASONS = {
    "attn_implementation": _KERNELS,
    "flash_attention": _KERNELS,
    "sdp_attention": _KERNELS,
    "xformers_attention": _KERNELS,
    "eager_attention": _KERNELS,
    "flex_attention": _KERNELS,
    "use_kernels": _KERNELS,
    "use_sonicmoe": _KERNELS,
    "use_scattermoe": _KERNELS,
    "experts_implementation": _KERNELS,
    "lora_mlp_kernel": _KERNELS,
    "lora_qkv_kernel": _KERNELS,
    "lora_o_kernel": _KERNELS,
    "torch_compile": _KERNELS,
    "liger_rope": _KERNELS,
    "tf32": "products are made in the model's type; torch.set_float32_matmul_precision decides for fp32",
    "bf16": "the other key for it decided",
    "fp16": "false: fp16 is not used, the experts' activations exceed it",
    "float32": "model.dtype decides",
    "load_in_4bit": "false: the base is held in model.dtype",
    "load_in_8bit": "false: the base is held in model.dtype",
    "quantize_moe_experts": "the files of the base decide how experts are held",
    "bnb_config_kwargs": "bitsandbytes is not used",
    "model_quantization_config": "the files of the base decide how it is held; model.dequantize says whether it stays so",
    "chat_template": _CHAT,
    "chat_template_jinja": _CHAT,
    "tokenizer_type": _CHAT,
    "tokenizer_config": _CHAT,
    "tokenizer_use_mistral_common": _CHAT,
    "special_tokens": _CHAT,
    "tokens": _CHAT,
    "chat_template_kwargs": "reasoning_effort went to the data sources",
    "model_type": "there is one architecture",
    "trust_remote_code": "code of models is never run",
    "strict": "every key is checked",
    "dataset_prepared_path": _LOADING,
    "dataset_processes": _LOADING,
    "dataset_num_proc": _LOADING,
    "skip_prepare_dataset": _LOADING,
    "remove_unused_columns": "columns that are not named are never read",
    "pad_to_sequence_len": "rows lie behind one another without padding",
    "eval_sample_packing": "validation rows are packed as data.packing says",
    "group_by_length": "packing makes it needless",
    "sample_packing_eff_est": "packing makes it needless",
    "train_on_inputs": "false: assistant turns carry loss, nothing else",
    "split_thinking": "thinking is read from reasoning_content or thinking parts",
    "shuffle_merged_datasets": "data.shuffle is true by default",
    "gradient_checkpointing_kwargs": "the non-reentrant kind is the only one",
    "save_safetensors": _BUILT_IN,
    "save_only_model": "run state is needed to go on; training.save_strategy: no writes the result alone",
    "auto_resume_from_checkpoints": _BUILT_IN,
    "wandb_watch": "gradients' norm is logged, not every gradient",
    "wandb_log_model": "files stay on disk; `ms4 push` sends them",
    "wandb_run_id": "a resumed run finds its own",
    "wandb_mode": "modes are disabled, offline and online",
    "cosine_min_lr_ratio": "0: the schedule ends at zero",
    "hub_model_id": "`ms4 push` sends the result",
    "hub_strategy": "`ms4 push` sends the result",
    "lora_fan_in_fan_out": "no layer of this model is stored so",
    "lora_target_linear": "false",
    "peft_init_lora_weights": "true: as PEFT starts by default",
    "ddp_find_unused_parameters": "not needed",
    "local_rank": "torchrun says it",
}
_FREQUENT = ("base_model", "datasets", "learning_rate", "micro_batch_size", "num_epochs", "sequence_len", "lora_target_modules")
_PLUGINS = {
    "cut_cross_entropy": "logits never exist for more than training.loss_chunk_tokens tokens",
    "liger": _KERNELS,
    "kernels": _KERNELS,
    "expert_parallel": "parallel.expert_parallel_size",
}


def drop_the_rest(draft: Draft) -> None:
    """Give every key that no part has spoken of its entry: a reason, or that it is not known."""
    values: dict[str, Any] = draft.document.values
    has_adapter = "adapter" in draft.run
    for key, value in values.items():
        if draft.is_named(key):
            continue
        if value is None or value == "":
            draft.drop(key, "left empty")
        elif key == "plugins":
            _plugins(draft)
        elif key in REASONS:
            draft.drop(key, REASONS[key])
        elif not has_adapter and key.startswith(("lora_", "peft_")):
            draft.drop(key, "there is no adapter")
        else:
            near = difflib.get_close_matches(key, [*REASONS, *_FREQUENT], n=1, cutoff=0.8)
            draft.drop(key, f"not known to this translator{f'; is it {near[0]}?' if near else ''}")
            draft.warn(f"{key[:80]}: not known to this translator; what it does is not in the translation.")


def _plugins(draft: Draft) -> None:
    for index, name in enumerate(draft.texts("plugins") or []):
        short = name.removeprefix("axolotl.integrations.").split(".")[0]
        if short in _PLUGINS:
            draft.drop(f"plugins.{index}", f"{name}: {_PLUGINS[short]}")
        else:
            draft.drop(f"plugins.{index}", f"{ascii(name)[1:-1][:80]}: code of others is not run")
            draft.warn(f"plugins: {ascii(name)[1:-1][:80]} is not run; what it does is not in the translation.")
